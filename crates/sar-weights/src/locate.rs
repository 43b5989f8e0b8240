//! Where in a file a model lies, and what its tensors are called there.
//!
//! Training programs nest a model in their own dictionaries (`model`, `trainer.var_wo_ddp`,
//! `state_dict.model`), wrap its modules (`module.`, `_orig_mod.`), and store averaged weights beside
//! the trained ones (`ema`). All of these are found by one tensor that every model of a kind has.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::{WeightsError, one_line};
use crate::file::TensorInfo;
use crate::named::NamedTensors;
use crate::unreadable::{Unreadable, check_readable};
use crate::{Format, Layout, ParameterInfo, WeightsFile};

/// What wrappers of modules put into the names of their parameters: `DataParallel`,
/// `torch.compile`, fully sharded data parallelism and activation checkpointing.
const WRAPPERS: [&str; 4] =
    ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];
/// How the last part of a root ends under which averaged weights lie.
const AVERAGES: [&str; 4] = ["ema", "average", "averaged", "avg"];

/// How to find the models of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Anchor {
    /// A tensor that every model of the kind has, and no other.
    pub tensor: &'static str,
    /// Where the released files hold the model, the first of them first.
    pub roots: &'static [&'static str],
    /// Whether averaged weights are taken where a file also holds the trained ones, as the released
    /// evaluation does.
    pub averages: bool,
}

/// Names, element types and shapes of the tensors of one model, by their names without what its file
/// puts in front of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Located {
    root: String,
    others: Vec<String>,
    tensors: BTreeMap<String, TensorInfo>,
}

/// The shapes of a model's tensors by name.
#[derive(Debug, Clone, Copy)]
pub struct Shapes<'l>(&'l Located);

impl Anchor {
    /// Finds the model of this kind in a file; `None` if there is none.
    ///
    /// Where the file holds several, `root` says which; without it the one under a root of the
    /// released files is taken, trained or averaged weights as [`averages`](Self::averages) says.
    ///
    /// # Errors
    /// If nothing of the kind lies under `root`, if several models are there and nothing says which is
    /// meant, if two tensors have the same name, or if one of the model's cannot be read.
    pub fn locate(
        &self,
        file: &WeightsFile,
        root: Option<&str>,
    ) -> Result<Option<Located>, WeightsError> {
        self.locate_among(file.path(), file.tensors(), file.unreadable(), root)
    }

    fn locate_among(
        &self,
        path: &Path,
        tensors: &[TensorInfo],
        unreadable: &[Unreadable],
        root: Option<&str>,
    ) -> Result<Option<Located>, WeightsError> {
        let fail = |reason: String| WeightsError::Unrecognized { path: path.into(), reason };
        let names = tensors.iter().map(|info| &info.name);
        let mut roots: Vec<Root> = names
            .chain(unreadable.iter().map(|tensor| &tensor.name))
            .filter_map(|name| Root::before(name, self.tensor))
            .collect();
        roots.sort();
        roots.dedup_by(|a, b| a.bare == b.bare);
        let Some(taken) = self.choose(&roots, root).map_err(fail)? else { return Ok(None) };
        let others: Vec<&Root> = roots.iter().filter(|other| *other != taken).collect();
        let inside = |name: &str| -> Option<String> {
            let bare = bare(name);
            let is_other = |other: &&Root| {
                other.bare.len() > taken.bare.len() && below(&other.bare, &bare).is_some()
            };
            let name = below(&taken.bare, &bare).filter(|_| !others.iter().any(is_other));
            name.map(ToOwned::to_owned)
        };
        check_readable(Some(path), unreadable, |name| inside(name).is_some())?;
        let mut found = BTreeMap::new();
        for info in tensors {
            let Some(name) = inside(&info.name) else { continue };
            if let Some(TensorInfo { name: first, .. }) = found.insert(name, info.clone()) {
                return Err(fail(format!(
                    "{} and {} are the same tensor",
                    one_line(&first),
                    one_line(&info.name)
                )));
            }
        }
        let others = others.into_iter().map(|other| other.shown.clone()).collect();
        Ok(Some(Located { root: taken.shown.clone(), others, tensors: found }))
    }

    /// Reads the model of this kind from a file, whatever else is in it: its tensors by their names
    /// without the root, and where it lies.
    ///
    /// # Errors
    /// As [`WeightsFile::open`], [`locate`](Self::locate) and [`Located::read`], and if there is no
    /// such model.
    pub fn read(
        &self,
        path: &Path,
        root: Option<&str>,
    ) -> Result<(NamedTensors, Located), WeightsError> {
        let file = WeightsFile::open(path)?;
        let located = self.locate(&file, root)?.ok_or_else(|| {
            let reason = format!("there is no {}", self.tensor);
            WeightsError::Unrecognized { path: path.into(), reason }
        })?;
        Ok((located.read(file)?, located))
    }

    fn choose<'r>(
        &self,
        roots: &'r [Root],
        said: Option<&str>,
    ) -> Result<Option<&'r Root>, String> {
        let listed = |roots: &[&Root]| {
            let names = roots.iter().map(|root| match root.shown.as_str() {
                "" => "the top".into(),
                root => format!("'{}'", one_line(root)),
            });
            names.collect::<Vec<String>>().join(", ")
        };
        let all: Vec<&Root> = roots.iter().collect();
        if let Some(said) = said {
            let found = roots.iter().find(|root| root.shown == said || root.bare == bare(said));
            return match (found, roots) {
                (Some(root), _) => Ok(Some(root)),
                (None, []) => Ok(None),
                (None, _) => Err(format!(
                    "there is no model under '{}'; there is one under {} (--root)",
                    one_line(said),
                    listed(&all)
                )),
            };
        }
        let (averages, trained): (Vec<&Root>, Vec<&Root>) =
            all.iter().copied().partition(|root| root.is_average());
        let group = match (averages.is_empty(), trained.is_empty()) {
            (false, false) if self.averages => averages,
            (false, true) => averages,
            _ => trained,
        };
        let released = self
            .roots
            .iter()
            .find_map(|released| group.iter().copied().find(|root| root.bare == *released));
        match (released, group.as_slice()) {
            (Some(root), _) => Ok(Some(root)),
            (None, []) => Ok(None),
            (None, [root]) => Ok(Some(root)),
            (None, several) => Err(format!(
                "there are {} models, under {}; choose one with --root",
                several.len(),
                listed(several)
            )),
        }
    }
}

/// What stands before the names of a model.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Root {
    /// Without wrappers.
    bare: String,
    /// As the file has it.
    shown: String,
}

impl Root {
    /// What stands before `anchor` in a name that ends with it.
    fn before(name: &str, anchor: &str) -> Option<Self> {
        let cut = |name: &str| {
            let root = name.strip_suffix(anchor)?;
            if root.is_empty() { Some(String::new()) } else { Some(root.strip_suffix('.')?.into()) }
        };
        let whole = bare(name);
        let bare = cut(&whole)?;
        // Wrappers may stand inside the anchor, too.
        let shown = cut(name).unwrap_or_else(|| bare.clone());
        Some(Self { bare, shown })
    }

    fn is_average(&self) -> bool {
        let last = self.bare.rsplit('.').next().unwrap_or_default().to_lowercase();
        last.split('_').any(|part| AVERAGES.contains(&part))
    }
}

/// A name without wrappers.
fn bare(name: &str) -> String {
    name.split('.').filter(|part| !WRAPPERS.contains(part)).collect::<Vec<_>>().join(".")
}

fn below<'n>(root: &str, name: &'n str) -> Option<&'n str> {
    if root.is_empty() { Some(name) } else { name.strip_prefix(root)?.strip_prefix('.') }
}

impl Located {
    /// What the file puts in front of the names, without the last dot; empty for nothing.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// What was taken, for the user to know; `None` if a file has one model and nothing before its
    /// names.
    pub fn note(&self) -> Option<String> {
        let root = match self.root.as_str() {
            "" => "at the top".to_owned(),
            root => format!("under '{}'", one_line(root)),
        };
        match self.others.as_slice() {
            [] if self.root.is_empty() => None,
            [] => Some(format!("took the tensors {root}")),
            others => {
                let others = others.iter().map(|other| match other.as_str() {
                    "" => "at the top".into(),
                    other => format!("under '{}'", one_line(other)),
                });
                let others = others.collect::<Vec<String>>().join(" and ");
                Some(format!("took the tensors {root}; there are others {others}: --root chooses"))
            }
        }
    }

    /// The tensors: their names without the root, and what the file says of them.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.tensors.iter().map(|(name, info)| (name.as_str(), info))
    }

    /// What the file says of a tensor.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// The shapes.
    pub fn shapes(&self) -> Shapes<'_> {
        Shapes(self)
    }

    /// Reads the tensors of the model, under their names without the root. The metadata of the file
    /// come along.
    ///
    /// # Errors
    /// As [`WeightsFile::read_all`].
    pub fn read(&self, mut file: WeightsFile) -> Result<NamedTensors, WeightsError> {
        let (path, metadata) = (file.path().to_owned(), file.metadata().clone());
        let mut named = NamedTensors::of_file(path, BTreeMap::new(), Vec::new(), metadata);
        if self.tensors.len() == file.tensors().len() {
            let mut all = file.read_all()?;
            for (name, info) in &self.tensors {
                named.insert(name.as_str(), all.remove(&info.name).expect("listed by the file"));
            }
            return Ok(named);
        }
        if file.format() == Format::Safetensors {
            // One checksum for all tensors, of which some are not read here.
            file.verify()?;
        }
        for (name, info) in &self.tensors {
            named.insert(name.as_str(), file.read(&info.name)?);
        }
        Ok(named)
    }

    /// Checks that the tensors are the parameters of a module, all of them and nothing else but the
    /// buffers that the layout ignores; no value is read.
    ///
    /// # Errors
    /// [`WeightsError::Mismatch`] with everything that is missing, unused or of another shape or type.
    pub fn check(
        &self,
        path: &Path,
        parameters: &[ParameterInfo],
        layout: &Layout,
    ) -> Result<(), WeightsError> {
        let found =
            self.tensors.iter().map(|(name, info)| (name.as_str(), &info.shape[..], info.dtype));
        crate::bind::compare(Some(path), parameters, found, layout)
    }
}

impl Shapes<'_> {
    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.0.tensors.contains_key(name)
    }

    /// The shape of a tensor that has to be there.
    ///
    /// # Errors
    /// If it is not there.
    pub fn shape(&self, name: &str) -> Result<&[usize], String> {
        let info = self.0.tensors.get(name).ok_or_else(|| format!("there is no {name}"))?;
        Ok(&info.shape)
    }

    /// The shape of a tensor that has to be there with that rank.
    ///
    /// # Errors
    /// If it is not there, or of another rank.
    pub fn sides<const D: usize>(&self, name: &str) -> Result<[usize; D], String> {
        let shape = self.shape(name)?;
        <[usize; D]>::try_from(shape)
            .map_err(|_| format!("{name} is {shape:?}, which does not have {D} dimensions"))
    }

    /// How many of the names of consecutive numbers, from 0 on, are there.
    pub fn count(&self, name: impl Fn(usize) -> String) -> usize {
        (0..).take_while(|&i| self.contains(&name(i))).count()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::DType;

    use super::*;

    const RAW: Anchor =
        Anchor { tensor: "in.weight", roots: &["trainer.net", "model"], averages: false };
    const AVERAGED: Anchor = Anchor { averages: true, ..RAW };

    fn infos(names: &[&str]) -> Vec<TensorInfo> {
        let info =
            |name: &&str| TensorInfo { name: (*name).into(), dtype: DType::F32, shape: vec![2] };
        names.iter().map(info).collect()
    }

    fn locate(
        anchor: Anchor,
        names: &[&str],
        root: Option<&str>,
    ) -> Result<Option<Located>, String> {
        let found = anchor.locate_among(Path::new("f"), &infos(names), &[], root);
        found.map_err(|error| error.to_string())
    }

    #[test]
    fn roots_and_wrappers_are_taken_off() {
        let check = |names: &[&str], root: &str| {
            let found = locate(RAW, names, None).unwrap().unwrap();
            assert_eq!(found.root(), root, "{names:?}");
            let bare: Vec<&str> = found.tensors().map(|(name, _)| name).collect();
            assert_eq!(bare, ["blocks.0.bias", "in.weight"], "{names:?}");
            for (_, info) in found.tensors() {
                assert!(names.contains(&info.name.as_str()));
            }
        };
        check(&["in.weight", "blocks.0.bias"], "");
        check(&["module.in.weight", "module.blocks.0.bias"], "module");
        check(&["a.b.in.weight", "a.b.blocks.0.bias", "a.in.bias", "in.bias"], "a.b");
        check(&["m._orig_mod.in.weight", "m._orig_mod.blocks.0.bias", "opt.lr"], "m._orig_mod");
        check(&["m.in._orig_mod.weight", "m.blocks.0._orig_mod.bias"], "m");
        check(&["module.in.weight", "blocks.0.bias"], "module");
        assert!(locate(RAW, &["main.weight"], None).unwrap().is_none());
    }

    #[test]
    fn what_cannot_be_read_is_named_where_it_is_wanted() {
        let unreadable = |name: &str| [Unreadable { name: name.into(), what: "qint8".into() }];
        let locate = |name: &str| {
            let tensors = infos(&["model.x"]);
            let root = RAW.locate_among(Path::new("f"), &tensors, &unreadable(name), None);
            root.map(|found| found.is_some()).map_err(|error| error.to_string())
        };
        assert!(locate("model.in.weight").unwrap_err().contains("model.in.weight is qint8"));
        assert_eq!(locate("optimizer.in.bias"), Ok(false));
    }

    #[test]
    fn one_of_several_models_is_taken_and_the_others_are_named() {
        let taken = |anchor, names: &[&str], root| {
            locate(anchor, names, root).map(|found| found.map(|found| found.root().to_owned()))
        };
        let both = ["model.in.weight", "ema.in.weight", "ema.x", "model.x"];
        assert_eq!(taken(RAW, &both, None), Ok(Some("model".into())));
        assert_eq!(taken(AVERAGED, &both, None), Ok(Some("ema".into())));
        assert_eq!(taken(RAW, &both, Some("ema")), Ok(Some("ema".into())));
        let note = locate(RAW, &both, None).unwrap().unwrap().note().unwrap();
        assert_eq!(
            note,
            "took the tensors under 'model'; there are others under 'ema': --root chooses"
        );
        assert_eq!(
            taken(RAW, &["net.in.weight", "net_ema.in.weight"], None),
            Ok(Some("net".into()))
        );
        assert_eq!(taken(RAW, &["in.weight", "ema.in.weight"], None), Ok(Some(String::new())));
        let top = locate(RAW, &["in.weight", "ema.in.weight", "ema.x"], None).unwrap().unwrap();
        assert_eq!(top.tensors().count(), 1, "what lies under another root is not unused");
        let released = ["trainer.net.in.weight", "other.in.weight"];
        assert_eq!(taken(RAW, &released, None), Ok(Some("trainer.net".into())));
        let error = taken(RAW, &["a.in.weight", "b.in.weight"], None).unwrap_err();
        assert!(error.contains("2 models, under 'a', 'b'; choose one with --root"), "{error}");
        let error = taken(RAW, &both, Some("emma")).unwrap_err();
        assert!(
            error.contains("no model under 'emma'; there is one under 'ema', 'model'"),
            "{error}"
        );
        let error = taken(RAW, &["in.weight", "x", "module.x"], None).unwrap_err();
        assert!(error.contains("x and module.x are the same tensor"), "{error}");
    }
}
