//! Whether the ranks of a run fit together, and fit its recipe: found out before anything is trained.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

use sar_exchange::{ExchangeError, Group};
use sar_weights::Crc32;
use serde::{Deserialize, Serialize};

use crate::recipe::Recipe;
use crate::wire::Wire;
use crate::{StageId, TrainError};

/// What has to be the same on all ranks.
#[derive(Serialize, Deserialize)]
struct Papers {
    host: String,
    /// Names and values.
    values: Vec<(String, String)>,
}

/// Compares what each rank says of itself with what the rank that leads says; all ranks make the call. Names
/// read well behind "has another", as "recipe" does.
///
/// # Errors
/// The first difference, the same on all ranks.
pub fn compare(group: &Group, values: &[(&str, String)]) -> Result<(), TrainError> {
    if group.is_alone() {
        return Ok(());
    }
    let owned = values.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
    let papers = Papers { host: host(), values: owned.collect() };
    let message = serde_json::to_vec(&papers).expect("plain values");
    let mut all = Vec::with_capacity(group.ranks());
    for (rank, theirs) in group.all_gather(&message)?.iter().enumerate() {
        let theirs: Papers =
            serde_json::from_slice(theirs).map_err(|_| ExchangeError::Unexpected { rank })?;
        all.push(theirs);
    }
    let (leader, others) = all.split_first().expect("at least one rank");
    for (rank, other) in (1..).zip(others) {
        let pairs = leader.values.iter().zip(&other.values);
        let Some(((name, ours), (_, theirs))) = pairs.into_iter().find(|(a, b)| a != b) else {
            continue;
        };
        return Err(TrainError::Ranks(format!(
            "rank {rank} on {} has another {name} than rank 0 on {}, {theirs}, not {ours}; all ranks need the same",
            other.host, leader.host
        )));
    }
    Ok(())
}

/// Places of a tar file that ranks compare.
const LOOKS: u64 = 16;

/// Checks that all ranks have the same tar files, as far as their names, lengths and a few places show: copies
/// that were packed anew mostly have the same lengths.
///
/// # Errors
/// As [`compare`].
pub(crate) fn compare_files(group: &Group, files: &[PathBuf]) -> Result<(), TrainError> {
    if group.is_alone() {
        return Ok(());
    }
    let (mut crc, mut bytes) = (Crc32::default(), 0);
    for file in files {
        group.alive();
        // One that nobody has is named by the rank that is to look into it.
        let length = fs::metadata(file).map_or(0, |file| file.len());
        crc.update(file.file_name().unwrap_or_default().as_encoded_bytes());
        crc.update(&length.to_le_bytes());
        bytes += length;
        if let Ok(mut file) = fs::File::open(file) {
            look(&mut file, length, &mut crc);
        }
    }
    let files = format!("{} of {bytes} bytes, {crc}", files.len());
    compare(group, &[("set of tar files", files)])
}

/// Takes in some bytes of a file, from evenly spaced places and its end on; of one that cannot be read, what
/// can: its reader will say so.
fn look(file: &mut fs::File, length: u64, crc: &mut Crc32) {
    let mut block = [0; 512];
    for i in 0..=LOOKS {
        let place = (length / LOOKS * i).min(length.saturating_sub(block.len() as u64));
        let read = file.seek(SeekFrom::Start(place)).and_then(|_| file.read(&mut block));
        crc.update(&block[..read.unwrap_or(0)]);
    }
}

fn host() -> String {
    #[cfg(unix)]
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    #[cfg(not(unix))]
    let name = std::env::var("COMPUTERNAME").ok();
    name.unwrap_or_else(|| "an unnamed machine".into())
}

/// What is to be said of so many ranks on a recipe's micro-batches, a line each.
///
/// # Errors
/// If a step has fewer images than there are ranks.
pub(crate) fn fits(recipe: &Recipe, ranks: usize) -> Result<Vec<String>, TrainError> {
    let mut notes = Vec::new();
    let wire = recipe.exchange.gradients;
    if wire != Wire::F32 {
        notes.push(format!(
            "gradients are rounded to {wire} before they are added (exchange.gradients): other \
             results than in f32, the same for any number of ranks"
        ));
    }
    for id in StageId::ALL.into_iter().filter(|id| recipe.steps(*id) > 0) {
        let (optimization, table) = (recipe.optimization(id), id.table());
        let (images, parts) = (optimization.batch_size, optimization.grad_accum_steps);
        if images < ranks {
            return Err(TrainError::Ranks(format!(
                "{table}.optimization.batch_size: {images} images for {ranks} ranks; use {images} ranks at most, or a larger batch"
            )));
        }
        let idle = ranks.saturating_sub(parts);
        if idle > 0 && id != StageId::Control {
            notes.push(format!(
                "{id}: {idle} of {ranks} ranks are idle, for a batch has {parts} parts; \
                 raise {table}.optimization.grad_accum_steps to {ranks} or more"
            ));
        }
    }
    Ok(notes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::on_ranks;

    #[test]
    fn the_first_difference_is_named_by_all() {
        let errors = on_ranks(3, |group| {
            let recipe = if group.rank() == 2 { "b" } else { "a" };
            let values = [("program", "1".to_owned()), ("recipe", recipe.to_owned())];
            compare(&group, &values).unwrap_err().to_string()
        });
        let host = host();
        let expected = format!(
            "rank 2 on {host} has another recipe than rank 0 on {host}, b, not a; all ranks need the same"
        );
        assert_eq!(errors, [expected.clone(), expected.clone(), expected]);
    }

    #[test]
    fn ranks_without_work_are_counted() {
        let parts = |sar: usize| {
            let settings = [
                "pretrain.optimization.batch_size=8".to_owned(),
                "pretrain.optimization.grad_accum_steps=4".to_owned(),
                "tokenizer.optimization.batch_size=8".to_owned(),
                "tokenizer.optimization.grad_accum_steps=2".to_owned(),
                "sar.optimization.batch_size=8".to_owned(),
                format!("sar.optimization.grad_accum_steps={sar}"),
            ];
            Recipe::load("emoji-quick", &settings).unwrap()
        };
        assert!(fits(&parts(8), 2).unwrap().is_empty());
        let mut rounded = parts(8);
        rounded.exchange.gradients = Wire::Bf16;
        let notes = fits(&rounded, 2).unwrap();
        assert!(notes.len() == 1 && notes[0].contains("rounded to bf16"), "{notes:?}");
        let notes = fits(&parts(8), 4).unwrap();
        assert_eq!(notes.len(), 1);
        assert!(notes[0].starts_with("tokenizer: 2 of 4 ranks are idle"), "{notes:?}");
        let error = fits(&parts(8), 9).unwrap_err().to_string();
        assert!(
            error.starts_with("tokenizer.optimization.batch_size: 8 images for 9 ranks"),
            "{error}"
        );
    }
}
