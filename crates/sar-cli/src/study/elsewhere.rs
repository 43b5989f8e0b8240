//! Arms that another folder has measured, on another machine or in a folder that is gone, from its `study.json`.
//!
//! They stand beside the arms of a folder only where start and control have the same figures in both, to the last
//! digit: then what differs from the control there differs as much from the control here.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::Summary;
use super::file::{START, Study};
use super::results::Arm;
use crate::job::{difference_by, read_again};

/// What is of the machine, or follows from other arms, and may differ between folders; and what was set,
/// which a file of before does not say.
const NOT_OF_THE_WEIGHTS: [&str; 8] = [
    "set",
    "seconds_per_step",
    "programs",
    "mixed_programs",
    "diverged",
    "minus_control",
    "minus_control_p",
    "minus_start",
];

/// Adds the arms of a file that are not there yet, each at its place in the study; p-values are still to be
/// corrected.
///
/// # Errors
/// If the file is of another study, or its start or one of its controls has other figures.
pub(super) fn add(file: &Path, study: &Study, ours: &mut Summary) -> Result<()> {
    let at = file.display();
    let text = fs::read_to_string(file).with_context(|| format!("--with {at}"))?;
    let theirs: Summary = serde_json::from_str(&text)
        .with_context(|| format!("{at}: is no study.json of this version"))?;
    ensure!(
        theirs.name == study.name,
        "{at}: is of the study '{}', not '{}'; give a result of the same study",
        theirs.name,
        study.name
    );
    let [start, control] = [START, study.control.as_str()];
    for (arms, whose) in [(&theirs.arms, "its folder's"), (&ours.arms, "this folder's")] {
        for name in [start, control] {
            ensure!(
                named(arms, name).is_some(),
                "{at}: {whose} '{name}' is not finished: nothing says that the two folders compare; finish it first"
            );
        }
    }
    let controls = study.arms.iter().filter_map(|arm| study.control_of(&arm.name));
    for name in [start, control].into_iter().chain(controls) {
        if let Some((theirs, ours)) = named(&theirs.arms, name).zip(named(&ours.arms, name)) {
            check_same(theirs, ours).with_context(|| format!("{at}: '{name}'"))?;
        }
    }

    let is_control = |name: &str| {
        name == start || study.arms.iter().any(|arm| study.control_of(&arm.name) == Some(name))
    };
    let mut added = Vec::new();
    for arm in theirs.arms {
        let name = arm.name.clone();
        if named(&ours.arms, &name).is_none() {
            check_fits(&arm, study).with_context(|| format!("{at}: '{name}'"))?;
            if arm.set.is_none() {
                eprintln!(
                    "{at}: does not say what '{name}' has set: it is taken to be as in the study"
                );
            }
            ours.arms.push(Arm { minus_control_p: Default::default(), ..arm });
            added.push(name);
        } else if !is_control(&name) {
            eprintln!("{at}: '{name}' is left out: it is measured here, too");
        }
    }
    if added.is_empty() {
        return Ok(());
    }
    let place = |arm: &Arm| study.arms.iter().position(|of| of.name == arm.name);
    ours.arms.sort_by_key(place);
    ours.unfinished.retain(|name| !added.contains(name));
    ours.elsewhere.extend(added);
    add_hours(theirs.hours_by_arm, theirs.hours, ours);
    ours.command += &format!("; {}", theirs.command);
    for code in theirs.code {
        if !ours.code.contains(&code) {
            ours.code.push(code);
        }
    }
    Ok(())
}

/// Adds those hours that are not there yet: a file may have been joined with another that is given, too, or with
/// this folder's. Of a file of before only their sum is known.
fn add_hours(mut by_arm: BTreeMap<String, Vec<f64>>, sum: f64, ours: &mut Summary) {
    if by_arm.is_empty() {
        by_arm.insert("?".into(), vec![sum]);
    }
    for (arm, folders) in by_arm {
        let known = ours.hours_by_arm.entry(arm).or_default();
        for hours in folders {
            // They may have been written and read again, which may cost the last digits.
            if !known.iter().any(|of| (of - hours).abs() <= 1e-9 * hours) {
                known.push(hours);
            }
        }
    }
    ours.hours = super::sum(&ours.hours_by_arm);
}

fn named<'a>(arms: &'a [Arm], name: &str) -> Option<&'a Arm> {
    arms.iter().find(|arm| arm.name == name)
}

/// Distances of images of the same weights are this close, of the larger one: a program may round features otherwise
/// than the one before. All else is the same to the last digit.
const OF_FEATURES: f64 = 1e-6;

/// Whether a field of two folders is the same, but for how distances are rounded.
fn is_same(field: &str, theirs: &Value, ours: &Value) -> bool {
    let is_distance = field.split(['.', '[']).any(|part| part == "fd" || part == "kid");
    let is_close = |(a, b): (f64, f64)| (a - b).abs() <= OF_FEATURES * a.abs().max(b.abs());
    theirs == ours || is_distance && theirs.as_f64().zip(ours.as_f64()).is_some_and(is_close)
}

/// Checks that two folders have the same figures of an arm.
fn check_same(theirs: &Arm, ours: &Arm) -> Result<()> {
    let of_weights = |arm: &Arm| -> Value {
        let mut value = serde_json::to_value(arm).expect("plain values");
        let fields = value.as_object_mut().expect("fields");
        fields.retain(|name, _| !NOT_OF_THE_WEIGHTS.contains(&name.as_str()));
        value
    };
    match difference_by("", &of_weights(theirs), &of_weights(&read_again(ours)), &is_same) {
        None => Ok(()),
        Some((field, theirs, ours)) => bail!(
            "has {field} = {theirs}, here it is {ours}; arms compare only where start and control are the same"
        ),
    }
}

/// Checks that an arm can be one of the study.
fn check_fits(arm: &Arm, study: &Study) -> Result<()> {
    let of_study = study.arm(&arm.name)?;
    let cost = study.cost(of_study)?;
    if let Some(set) = arm.set.as_ref().filter(|set| **set != of_study.set) {
        bail!("has set {set:?}, in the study {:?}", of_study.set);
    }
    let (n, all) = (arm.seeds + arm.diverged.len(), study.seeds.len());
    ensure!(n == all, "has {n} of the {all} seeds");
    ensure!(arm.figures.is_some() == (arm.seeds > 0), "lacks figures, or has those of no seed");
    if let Some(steps) = arm.steps {
        ensure!(steps == cost.steps, "has {steps} steps, in the study {}", cost.steps);
    }
    let control = study.control_of(&arm.name);
    ensure!(
        arm.control.as_deref() == control,
        "is compared with {}, in the study with {}",
        arm.control.as_deref().unwrap_or("nothing"),
        control.unwrap_or("nothing")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::f64::consts::FRAC_2_PI;

    use serde_json::json;

    use super::*;
    use crate::study::code::Code;
    use crate::study::file::tests::small;
    use crate::study::results::tests::finished;
    use crate::study::results::{Finished, arms, correct};
    use crate::study::unit::{Failed, write};

    fn code(program: &str) -> Code {
        Code { program: program.into(), commit: None, machine: "m".into() }
    }

    /// What a folder of these arms has, made by a program.
    fn summary(program: &str, finished: &[Finished]) -> Summary {
        let study = small();
        let mut arms = arms(&study, finished).unwrap();
        correct(&mut arms);
        let is_there = |name: &str| arms.iter().any(|arm| arm.name == name);
        let names = study.arms.iter().map(|arm| arm.name.clone());
        // Those of a are 1, of b 2, of c 3.
        let hours = f64::from(program.as_bytes()[0] - b'a' + 1);
        Summary {
            name: study.name.clone(),
            recipe: study.recipe.clone(),
            start: START.into(),
            control: study.control.clone(),
            scratch_control: study.scratch_control.clone(),
            intervals: String::new(),
            hours,
            hours_by_arm: [("control".to_owned(), vec![hours])].into(),
            command: format!("by {program}"),
            code: vec![code("common"), code(program)],
            real: None,
            unfinished: names.filter(|name| !is_there(name)).collect(),
            elsewhere: Vec::new(),
            arms,
        }
    }

    fn start_and_control() -> [Finished; 2] {
        [finished(START, &[4.0, 4.5]), finished("control", &[1.0, 3.0])]
    }

    /// Of differences 1 and 2 with one degree of freedom: t is 3.
    fn here() -> Summary {
        let [start, control] = start_and_control();
        summary("a", &[start, control, finished("sar-soft", &[2.0, 5.0])])
    }

    /// Of differences 2 and 0: t is 1.
    fn there() -> Vec<Finished> {
        let scratch_control = finished("scratch-control", &[1.0, 3.0]);
        let mut wide = finished("scratch-wide", &[3.0, 3.0]);
        wide.outcomes.iter_mut().for_each(|of| of.trained.steps = 60);
        start_and_control().into_iter().chain([scratch_control, wide]).collect()
    }

    /// What comes of adding one folder's result to another's.
    fn added(theirs: &Summary, mut ours: Summary) -> Result<Summary> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("b.json");
        write(&file, theirs).unwrap();
        add(&file, &small(), &mut ours)?;
        correct(&mut ours.arms);
        Ok(ours)
    }

    /// One line that has all of `parts`, and the file.
    fn refuses(theirs: &Summary, ours: Summary, parts: &[&str]) {
        let error = format!("{:#}", added(theirs, ours).err().expect("refused"));
        for part in parts.iter().chain(&["b.json"]) {
            assert!(error.contains(part), "'{part}' is not in: {error}");
        }
        assert!(!error.contains('\n'), "{error}");
    }

    /// The p-value of a t with one degree of freedom.
    fn p(t: f64) -> f64 {
        1.0 - t.atan() * FRAC_2_PI
    }

    #[test]
    fn arms_of_another_folder_are_corrected_with_these() {
        let close = |summary: &Summary, name: &str, expected: f64| {
            let found = named(&summary.arms, name).unwrap().minus_control_p["kid"];
            assert!((found - expected).abs() < 1e-9, "{name}: {found}, not {expected}");
        };
        let ours = here();
        close(&ours, "sar-soft", p(3.0));
        assert_eq!(ours.unfinished, ["scratch-control", "scratch-wide"]);
        let both = added(&summary("b", &there()), ours).unwrap();
        let names: Vec<&str> = both.arms.iter().map(|arm| arm.name.as_str()).collect();
        assert_eq!(names, [START, "control", "sar-soft", "scratch-control", "scratch-wide"]);
        // By Holm: twice the smaller one, 0.41, and then the larger one, 0.5.
        close(&both, "sar-soft", 2.0 * p(3.0));
        close(&both, "scratch-wide", 0.5);
        assert_eq!(both.elsewhere, ["scratch-control", "scratch-wide"]);
        assert!(both.unfinished.is_empty());
        assert_eq!((both.hours, both.command.as_str()), (3.0, "by a; by b"));
        assert_eq!(both.code, [code("common"), code("a"), code("b")]);

        // The other way round, and with an arm that both have: that of this folder stays.
        let other = finished("sar-soft", &[7.0, 9.0]);
        let theirs: Vec<Finished> = there().into_iter().chain([other]).collect();
        let both = added(&summary("b", &theirs), here()).unwrap();
        let soft = named(&both.arms, "sar-soft").unwrap().figures.as_ref().unwrap();
        assert_eq!((soft.kid.mean, both.elsewhere.len()), (3.5, 2));
        // Nothing new: nothing of the file is in the result.
        let both = added(&here(), here()).unwrap();
        assert_eq!((both.hours, both.command.as_str()), (1.0, "by a"));
        assert!(both.elsewhere.is_empty());
    }

    #[test]
    fn hours_count_once_however_often_they_are_joined() {
        // Each has an arm that the others have not.
        let of = |program: &str, left_out: usize| {
            let mut finished = there();
            finished.remove(left_out);
            summary(program, &finished)
        };
        let (b, c) = (|| of("b", 3), || of("c", 2));
        let joined = |files: &[&Summary]| {
            let all = files.iter().try_fold(here(), |ours, theirs| added(theirs, ours));
            all.unwrap().hours
        };
        assert_eq!(joined(&[&b(), &c()]), 6.0);
        let with_b = added(&b(), c()).unwrap();
        assert_eq!(with_b.hours, 5.0);
        assert_eq!([joined(&[&b(), &with_b]), joined(&[&with_b, &b()])], [6.0; 2]);
        // This folder's own, which another has joined.
        let with_ours = added(&here(), c()).unwrap();
        assert_eq!((with_ours.hours, joined(&[&with_ours])), (4.0, 4.0));
        // A file of before says the sum alone.
        let before = Summary { hours_by_arm: BTreeMap::new(), ..b() };
        assert_eq!(joined(&[&before, &c()]), 6.0);
    }

    #[test]
    fn pairs_are_of_seeds_that_went_well_in_both() {
        let p_of = |arm: &Arm, control: &Arm| {
            let mut arms = [control.clone(), arm.clone()];
            correct(&mut arms);
            arms[1].minus_control_p["kid"]
        };
        let [mut control, mut arm] =
            ["control", "sar-soft"].map(|name| named(&here().arms, name).unwrap().clone());
        assert!((p_of(&arm, &control) - p(3.0)).abs() < 1e-9);
        // Three differences of the same mean and interval have another p than two.
        arm.seeds = 3;
        // Half the interval, 6.353102, is 4.302653 standard errors; with two degrees of freedom p is
        // 1 - t / sqrt(2 + t^2).
        let t: f64 = 1.5 * 4.302653 / 6.353102;
        assert!((p_of(&arm, &control) - (1.0 - t / (2.0 + t * t).sqrt())).abs() < 1e-6);
        // Of which one has no partner.
        let (stage, reason) = (String::new(), String::new());
        control.diverged.push(Failed { seed: 3, stage, step: 1, reason, code: Vec::new() });
        assert!((p_of(&arm, &control) - p(3.0)).abs() < 1e-9);
        // It went wrong in both: then two are left of three.
        arm.diverged.clone_from(&control.diverged);
        arm.seeds = 2;
        assert!((p_of(&arm, &control) - p(3.0)).abs() < 1e-9);
    }

    #[test]
    fn distances_may_be_rounded_otherwise() {
        let ours = json!({ "fd": { "mean": 200.0 }, "grid": [{ "kid": 0.1, "loss": 2.0 }] });
        let after = |fd: f64, kid: f64, loss: f64| {
            let theirs = json!({ "fd": { "mean": fd }, "grid": [{ "kid": kid, "loss": loss }] });
            difference_by("", &theirs, &ours, &is_same).map(|(field, ..)| field)
        };
        assert_eq!(after(200.0001, 0.100_000_09, 2.0), None);
        assert_eq!(after(200.0003, 0.1, 2.0).as_deref(), Some("fd.mean"));
        assert_eq!(after(200.0, 0.100_000_2, 2.0).as_deref(), Some("grid[0].kid"));
        assert_eq!(after(200.0, 0.1, 2.000_000_000_000_000_4).as_deref(), Some("grid[0].loss"));
    }

    #[test]
    fn what_does_not_compare_is_refused() {
        let changed = |change: fn(&mut Vec<Finished>)| {
            let mut theirs = there();
            change(&mut theirs);
            summary("b", &theirs)
        };
        // A single figure, at its end; the setting that it was measured at; a figure of the grid and of a scale.
        for (theirs, parts) in [
            (
                changed(|of| of[1].outcomes[1].precision = Some(0.25)),
                ["'control'", "has precision.", "here it is"],
            ),
            (
                changed(|of| of[0].outcomes[0].trained.student_loss = Some(2.5000000000000004)),
                ["'start'", "has student_loss.", "here it is 2.5"],
            ),
            (
                changed(|of| {
                    for outcome in &mut of[1].outcomes {
                        outcome.settings["guidance"] = json!(2.0);
                    }
                }),
                ["'control'", "settings.guidance = 2.0", "here it is 4.0"],
            ),
            (changed(|of| of[1].grids[0].rows[0].fd = 9.0), ["'control'", "grid[0].fd = 6", "2.0"]),
            (
                changed(|of| of[1].outcomes[1].trained.scales[0].teacher_loss = 1.0),
                ["'control'", "scales[0].teacher_loss", ""],
            ),
            (changed(|of| drop(of.remove(1))), ["its folder's 'control'", "not finished", ""]),
            (changed(|of| of[3].outcomes[0].trained.steps = 61), ["61 steps", "study 60", ""]),
            (changed(|of| drop(of[3].outcomes.pop())), ["'scratch-wide'", "1 of the 2 seeds", ""]),
        ] {
            refuses(&theirs, here(), &parts);
        }
        let with = |change: fn(&mut Summary)| {
            let mut theirs = summary("b", &there());
            change(&mut theirs);
            theirs
        };
        refuses(&with(|of| of.name = "large".into()), here(), &["'large'", "'small'"]);
        refuses(&with(|of| of.arms[3].name = "x".into()), here(), &["no arm 'x'", "sar-soft"]);
        refuses(
            &with(|of| of.arms[3].control = Some("control".into())),
            here(),
            &["'scratch-wide'", "with control, in the study with scratch-control"],
        );
        refuses(
            &with(|of| of.arms[3].set = Some(vec!["backbone.width=128".into()])),
            here(),
            &["'scratch-wide'", "has set [\"backbone.width=128\"]", "[\"backbone.width=96\"]"],
        );
        // A file of before does not say it.
        let before = with(|of| of.arms.iter_mut().for_each(|arm| arm.set = None));
        assert_eq!(added(&before, here()).unwrap().elsewhere.len(), 2);
        refuses(
            &with(|of| of.arms[3].figures = None),
            here(),
            &["'scratch-wide'", "lacks figures"],
        );
        // The other control is compared, too, where both have it.
        let scratch = || finished("scratch-control", &[1.0, 3.5]);
        let ours = start_and_control().into_iter().chain([scratch()]).collect::<Vec<_>>();
        refuses(&summary("b", &there()), summary("a", &ours), &["'scratch-control'", "here it is"]);
        let [start, _] = start_and_control();
        refuses(&summary("b", &there()), summary("a", &[start]), &["this folder's 'control'"]);

        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("b.json");
        let error = |ours: &mut Summary| format!("{:#}", add(&file, &small(), ours).unwrap_err());
        assert!(error(&mut here()).contains("--with"));
        fs::write(&file, "{}").unwrap();
        assert!(error(&mut here()).contains("b.json: is no study.json"));
    }
}
