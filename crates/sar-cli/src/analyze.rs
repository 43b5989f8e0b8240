//! `sar analyze`: the training dynamics of a run's weights, scale by scale.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::backend::AutodiffBackend;
use sar_rollout::{Choice, Filters};
use sar_train::analysis::{Analysis, Analyzed, Settings, Target};
use sar_train::dynamics::ScaleDynamics;
use sar_train::{Recipe, StageId};
use sar_weights::write_bytes;

use crate::device::{DeviceArg, Job};
use crate::events::Events;
use crate::generation::{check_file, make_out, out_folder};
use crate::hub::WeightsPath;
use crate::progress::Progress;
use crate::table::aligned;
use crate::{Verdict, analysis_plots};

/// Images that gradient norms are of, unless said.
const GRADIENT_IMAGES: usize = 32;

/// What `--help` says below the options.
const NOTES: &str = "\
Everything is of held-out images, in evaluation mode and without guidance, by scale:
  teacher    loss behind a true context, nats per token
  accuracy   how often the most probable token behind it is the true one
  student    loss behind the model's own predictions, one step deep: the argmax of the teacher pass
  rollout    loss behind a free-running rollout, each scale from its own coarser ones
  gradient   L2 norm of the gradient of the scale's own teacher loss, of all parameters of the backbone
  entropy    of the histogram of the true tokens and, as own entropy, of the rollout's, nats
  tokens     share of the rollout's tokens that are not the true ones
  latents    squared distance of the rollout's latents f_hat from the true ones, in squared lengths of these
  repeated   of the rollout's tokens that lie over the same latents as one of a coarser scale, the share that has
             its code; all of the true ones have, where the tokenizer is FlexVAR's and its codebook does not grow

A run keeps the two newest checkpoints of each stage and its best; log.checkpoint_steps says how far apart
they are. What lies in its folder is measured, copies of other checkpoints in checkpoints/ as well. Without
checkpoints amid a stage there is nothing to plot over its steps.";

#[derive(clap::Args)]
#[command(after_help = NOTES)]
pub(crate) struct Args {
    /// A run directory: its weights before and after SAR and of the control, and its checkpoints, on the
    /// images of its recipe.
    #[arg(long, value_name = "DIR", conflicts_with = "recipe")]
    run: Option<PathBuf>,
    /// Instead of a run: whose held-out images and scales are measured on.
    #[arg(long, value_name = "NAME|FILE", requires_all = ["tokenizer", "backbones"])]
    recipe: Option<String>,
    /// Tokenizer weights that the backbones belong to: a run's, or a released file of VAR or FlexVAR; with
    /// the feature `hub` also hf:OWNER/REPO/FILE, as those of backbones.
    #[arg(long, value_name = "FILE", requires = "recipe")]
    tokenizer: Option<WeightsPath>,
    /// Backbone weights; may be named several times.
    #[arg(long = "backbone", value_name = "FILE", requires = "recipe")]
    backbones: Vec<WeightsPath>,
    /// Which of several models in the files of the backbones, as in ema [default: the one that the released
    /// evaluation takes]
    #[arg(long, value_name = "NAME", requires = "recipe")]
    root: Option<String>,
    /// Held-out images, from all over them; 0 for all [default: as many as the recipe measures]
    #[arg(long, value_name = "N")]
    images: Option<usize>,
    /// Held-out images that gradient norms are of, each worth a training step's image at every scale; 0: no
    /// gradient norms [default: 32, or as many as there are]
    #[arg(long, value_name = "N")]
    gradient_images: Option<usize>,
    /// How the tokens of the free-running rollout are chosen.
    #[arg(long, value_enum, default_value_t = Rollout::Argmax)]
    rollout: Rollout,
    /// A new file for the figures [default: analysis.json in --out]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// A new or empty folder for analysis.json and the plots [default: analysis, or the next that is free]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArg,
}

/// How tokens are chosen, always without guidance.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Rollout {
    /// The most probable ones.
    Argmax,
    /// Drawn with the recipe's top-k and top-p, from a stream of each image.
    Sampled,
}

pub(crate) fn run(args: Args) -> Result<Verdict> {
    let Args {
        run,
        recipe,
        tokenizer,
        backbones,
        root,
        images,
        gradient_images,
        rollout,
        json,
        out,
        device,
    } = args;
    let out = out_folder(out, "analysis")?;
    if let Some(json) = &json {
        check_file("--json", json, true)?;
    }
    let target = match (recipe, tokenizer, run) {
        (Some(recipe), Some(tokenizer), _) => {
            let backbones = backbones.iter().map(WeightsPath::file).collect::<Result<_>>()?;
            Target::of_files(Recipe::load(&recipe, &[])?, tokenizer.file()?, backbones, root)?
        }
        (_, _, Some(run)) => Target::of_run(&run)?,
        _ => bail!("name a --run, or a --recipe with --tokenizer and --backbone"),
    };
    let (evaluation, held_out) = (&target.recipe.evaluation, target.images.n_held_out());
    for (name, n) in [("--images", images), ("--gradient-images", gradient_images)] {
        let n = n.unwrap_or(0);
        ensure!(n <= held_out, "{name} {n}: recipe {} holds out {held_out}", target.recipe.name);
    }
    let settings = Settings {
        images: images.unwrap_or(evaluation.images),
        gradient_images: gradient_images.unwrap_or(GRADIENT_IMAGES.min(held_out)),
        choice: match (rollout, evaluation.sampler.choice) {
            (Rollout::Argmax, _) => Choice::Argmax,
            (Rollout::Sampled, choice) if choice.mixes() => {
                let Filters { top_k, top_p } = choice.filters();
                Choice::Sample { top_k, top_p }
            }
            (Rollout::Sampled, choice) => choice,
        },
    };
    device.run(Analyze { target, settings, json, out })
}

struct Analyze {
    target: Target,
    settings: Settings,
    json: Option<PathBuf>,
    out: PathBuf,
}

impl Job for Analyze {
    type Output = Verdict;

    fn run<A: AutodiffBackend>(self, device: A::Device, workers: usize) -> Result<Verdict> {
        let Self { target, settings, json, out } = self;
        let mut progress = Progress::new(Events::NONE);
        let analysis = target.analyze::<A>(settings, workers, &device, &mut progress)?;
        print!("{}", table(&analysis));

        make_out(&out)?;
        let json = json.unwrap_or_else(|| out.join("analysis.json"));
        let text = serde_json::to_string_pretty(&analysis).expect("plain values") + "\n";
        write_bytes(&json, text.as_bytes()).context("--json")?;
        progress.line(&format!("wrote {}", json.display()));
        let mut plots = vec![("by-scale.svg".to_owned(), analysis_plots::by_scale(&analysis)?)];
        for stage in StageId::ALL {
            if let Some(svg) = analysis_plots::by_step(&analysis, stage)? {
                plots.push((format!("{stage}-by-step.svg"), svg));
            }
        }
        for (name, svg) in plots {
            let path = out.join(name);
            write_bytes(&path, svg.as_bytes())?;
            progress.line(&format!("wrote {}", path.display()));
        }
        Ok(Verdict::Good)
    }
}

/// A block for each set of weights, a row for each scale.
fn table(analysis: &Analysis) -> String {
    let head = [
        "scale",
        "n",
        "teacher",
        "accuracy",
        "student",
        "rollout",
        "gradient",
        "entropy",
        "own entropy",
        "tokens",
        "latents",
        "repeated",
    ];
    let mut text = String::new();
    for Analyzed { name, step, file, dynamics, .. } in &analysis.weights {
        let step = step.map_or(String::new(), |step| format!(", after {step} steps"));
        text += &format!("{name}: {}{step}\n", file.display());
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(dynamics.by_scale.iter().map(row));
        let all = &dynamics.all;
        let mut last = vec![String::new(); head.len()];
        last[0] = "all".into();
        let losses = [(2, all.teacher_loss), (4, all.student_loss), (5, all.rollout_loss)];
        losses.into_iter().for_each(|(column, loss)| last[column] = format!("{loss:.4}"));
        rows.push(last);
        text += &(aligned(&rows) + "\n");
    }
    text + &format!(
        "{} held-out images, gradients of {}; student and rollout of \"all\" are of all scales but the \
         first\n",
        analysis.images, analysis.gradient_images
    )
}

fn row(of: &ScaleDynamics) -> Vec<String> {
    let gradient = of.gradient_norm.map_or("-".into(), |norm| format!("{norm:.4}"));
    vec![
        of.scale.clone(),
        of.tokens.to_string(),
        format!("{:.4}", of.losses.teacher_loss),
        format!("{:.3}", of.accuracy),
        format!("{:.4}", of.losses.student_loss),
        format!("{:.4}", of.losses.rollout_loss),
        gradient,
        format!("{:.3}", of.histogram_entropy),
        format!("{:.3}", of.rollout_histogram_entropy),
        format!("{:.3}", of.token_divergence),
        format!("{:.4}", of.latent_divergence),
        of.repeats_kept.map_or("-".into(), |share| format!("{share:.3} of {}", of.repeats)),
    ]
}
