//! Random training schedules as data (FlexVAR's training).

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::{ScaleSchedule, ScheduleError, SeedTree};

/// Sides that are drawn without replacement from `from..=to`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SidePool {
    /// Smallest side of the pool.
    pub from: usize,
    /// Largest side of the pool.
    pub to: usize,
    /// How many sides are drawn.
    pub count: usize,
}

/// How the schedule of a training step is chosen: one draw per micro-batch and rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum TrainingSchedule {
    /// The same schedule at every step.
    Fixed {
        /// That schedule.
        scales: ScaleSchedule,
    },
    /// FlexVAR's random schedules.
    Random {
        /// Taken with probability `fixed_probability`; also what is sampled and evaluated with.
        scales: ScaleSchedule,
        /// Probability of the fixed list (published: 0.05).
        fixed_probability: f64,
        /// Coarsest sides, always present (published: 1, 2; with a masked first scale 4, 5, 6).
        head: Vec<usize>,
        /// Where the middle sides come from (published: five of 3..=10, two of 11..=15).
        pools: Vec<SidePool>,
        /// Finest side (published: 16).
        last: usize,
        /// One uniform number removes a random middle side for each threshold that it exceeds
        /// (published: 0.9, 0.95, 0.98, 0.99).
        drop_thresholds: Vec<f64>,
        /// Sides near the end are removed until the pyramid has at most this many tokens
        /// (published: 680).
        max_tokens: usize,
        /// Which sides may be removed for that: each time one of so many at the end, as the list is
        /// then, so that more sides than these can go one after the other (published: 4).
        trim_window: usize,
        /// Whether the last side is safe from that. The released code removes it in a third of its
        /// draws; the last scale is what is decoded, so ours keeps it by default. It counts in
        /// `trim_window` all the same.
        keep_last: bool,
    },
}

impl TrainingSchedule {
    /// The published generator for 256 px.
    ///
    /// # Panics
    /// Never: the constants are a schedule.
    pub fn published_256px(keep_last: bool) -> Self {
        Self::Random {
            scales: ScaleSchedule::preset("256px").expect("a known preset"),
            fixed_probability: 0.05,
            head: vec![1, 2],
            pools: vec![
                SidePool { from: 3, to: 10, count: 5 },
                SidePool { from: 11, to: 15, count: 2 },
            ],
            last: 16,
            drop_thresholds: vec![0.9, 0.95, 0.98, 0.99],
            max_tokens: 680,
            trim_window: 4,
            keep_last,
        }
    }

    /// The schedule that sampling and evaluation use.
    pub fn fixed(&self) -> &ScaleSchedule {
        match self {
            Self::Fixed { scales } | Self::Random { scales, .. } => scales,
        }
    }

    /// The most tokens that a step has.
    pub fn most_tokens(&self) -> usize {
        let fixed = self.fixed().n_tokens();
        match self {
            Self::Fixed { .. } => fixed,
            Self::Random { max_tokens, .. } => fixed.max(*max_tokens),
        }
    }

    /// Checks that every draw makes an increasing schedule within the token budget: accepts the
    /// generators of which this is true, and no other.
    ///
    /// Sides have to increase before any is removed, as the removal is not always needed.
    ///
    /// # Errors
    /// One line that names the field.
    pub fn validate(&self) -> Result<(), String> {
        let Self::Random {
            scales,
            fixed_probability,
            head,
            pools,
            last,
            drop_thresholds,
            max_tokens,
            trim_window: _,
            keep_last: _,
        } = self
        else {
            return Ok(());
        };
        if !(0.0..=1.0).contains(fixed_probability) {
            return Err(format!("fixed_probability: {fixed_probability} is not a probability"));
        }
        if let Some(x) = drop_thresholds.iter().find(|x| !(0.0..=1.0).contains(*x)) {
            return Err(format!("drop_thresholds: {x} is not between 0 and 1"));
        }
        if head.is_empty() {
            return Err("head: must have a side, the first scale's".into());
        }
        if *last > ScaleSchedule::MAX_SIDE {
            return Err(format!("last: {last} is more than {}", ScaleSchedule::MAX_SIDE));
        }
        let mut floor = 0;
        for side in head.iter().chain([last]) {
            if *side <= floor {
                return Err(format!("head and last must increase: {side} after {floor}"));
            }
            floor = *side;
        }
        // Pools are sorted, disjoint and between head and last, so that every draw increases.
        let mut floor = head[head.len() - 1];
        for SidePool { from, to, count } in pools {
            if from <= &floor || to >= last {
                return Err(format!(
                    "pools: {from}..={to} must lie above {floor} and below the last side {last}"
                ));
            }
            if from > to || *count > to - from + 1 {
                return Err(format!("pools: cannot draw {count} of {from}..={to}"));
            }
            floor = *to;
        }
        let fixed = scales.n_tokens();
        if *fixed_probability > 0.0 && fixed > *max_tokens {
            return Err(format!(
                "max_tokens: {max_tokens} is less than the {fixed} tokens of scales, which are drawn \
                 with probability {fixed_probability}"
            ));
        }
        // How many sides can be removed depends on their number alone, so that the draw of the
        // largest sides without a drop keeps the budget if every draw does.
        let largest = |pool: &SidePool| pool.to + 1 - pool.count..=pool.to;
        let mut worst = self.sides(pools.iter().flat_map(largest));
        self.trim(&mut worst, |range| range.start);
        let tokens = tokens(&worst);
        if *fixed_probability < 1.0 && tokens > *max_tokens {
            return Err(format!(
                "max_tokens: {max_tokens} is less than the {tokens} tokens that a draw can be left with"
            ));
        }
        Ok(())
    }

    /// One draw.
    ///
    /// # Errors
    /// If the sides do not make an increasing schedule: never after [`validate`](Self::validate).
    pub fn draw(&self, seed: SeedTree) -> Result<ScaleSchedule, ScheduleError> {
        let Self::Random { scales, fixed_probability, head, pools, drop_thresholds, .. } = self
        else {
            return Ok(self.fixed().clone());
        };
        if f64::from(seed.child("fixed").uniform(0)) < *fixed_probability {
            return Ok(scales.clone());
        }
        let middle = pools.iter().enumerate().flat_map(|(i, pool)| {
            let order = seed.child("pool").at(i as u64).permutation(pool.to + 1 - pool.from);
            let mut drawn: Vec<usize> = order[..pool.count].iter().map(|o| pool.from + o).collect();
            drawn.sort_unstable();
            drawn
        });
        let mut sides = self.sides(middle);

        let x = f64::from(seed.child("drop").uniform(0));
        let removals = seed.child("remove");
        let mut removed = 0;
        let mut choose = |range: Range<usize>| {
            removed += 1;
            range.start + removals.below(removed - 1, range.len())
        };
        for threshold in drop_thresholds {
            let middle = head.len()..sides.len() - 1;
            if x > *threshold && !middle.is_empty() {
                sides.remove(choose(middle));
            }
        }
        self.trim(&mut sides, choose);
        ScaleSchedule::squares(&sides)
    }

    /// Head, middle and last; what is fixed has none of its own.
    fn sides(&self, middle: impl Iterator<Item = usize>) -> Vec<usize> {
        let Self::Random { head, last, .. } = self else { return Vec::new() };
        head.iter().copied().chain(middle).chain([*last]).collect()
    }

    /// Removes sides until the budget holds or none may go; `choose` picks a place of the range.
    fn trim(&self, sides: &mut Vec<usize>, mut choose: impl FnMut(Range<usize>) -> usize) {
        let Self::Random { head, max_tokens, trim_window, keep_last, .. } = self else { return };
        while tokens(sides) > *max_tokens {
            let start = sides.len().saturating_sub(*trim_window).max(head.len());
            let window = start..sides.len() - usize::from(*keep_last);
            if window.is_empty() {
                break;
            }
            sides.remove(choose(window));
        }
    }
}

fn tokens(sides: &[usize]) -> usize {
    sides.iter().map(|side| side * side).sum()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn draws(keep_last: bool, n: u64) -> Vec<ScaleSchedule> {
        let generator = TrainingSchedule::published_256px(keep_last);
        generator.validate().unwrap();
        (0..n).map(|i| generator.draw(SeedTree::new(1).at(i)).unwrap()).collect()
    }

    #[test]
    fn every_draw_keeps_the_budget_and_the_last_side() {
        for schedule in draws(true, 2000) {
            assert!(schedule.n_tokens() <= 680, "{schedule}");
            assert_eq!(schedule.last().height, 16, "{schedule}");
        }
    }

    #[test]
    fn the_released_behavior_loses_the_last_side_in_a_third_of_the_draws() {
        // A third of the draws; 591 is the mean token count over all of them.
        let all = draws(false, 6000);
        let lost = all.iter().filter(|schedule| schedule.last().height != 16).count();
        let share = lost as f64 / all.len() as f64;
        assert!((share - 1.0 / 3.0).abs() < 0.02, "share {share}");
        let tokens =
            all.iter().map(ScaleSchedule::n_tokens).sum::<usize>() as f64 / all.len() as f64;
        assert!((tokens - 591.0).abs() < 3.0, "tokens {tokens}");
    }

    #[test]
    fn impossible_generators_are_refused() {
        type Fields<'a> = (
            &'a mut Vec<SidePool>,
            &'a mut Vec<usize>,
            &'a mut usize,
            &'a mut f64,
            &'a mut Vec<f64>,
            &'a mut usize,
        );
        let check = |edit: fn(Fields<'_>), message: &str| {
            let mut generator = TrainingSchedule::published_256px(true);
            let TrainingSchedule::Random {
                pools,
                head,
                last,
                fixed_probability,
                drop_thresholds,
                max_tokens,
                ..
            } = &mut generator
            else {
                unreachable!()
            };
            edit((pools, head, last, fixed_probability, drop_thresholds, max_tokens));
            let error = generator.validate().unwrap_err();
            assert!(error.contains(message), "{error}");
        };
        check(|(pools, ..)| pools[0].count = 9, "pools: cannot draw 9");
        check(|(pools, ..)| pools[1].to = 16, "below the last side 16");
        check(|(pools, ..)| pools[0].from = 2, "above 2");
        check(|(pools, ..)| pools[0].to = usize::MAX, "below the last");
        check(|(pools, ..)| pools[0].from = 11, "cannot draw 5 of 11..=10");
        check(|(_, head, ..)| head.push(2), "must increase: 2 after 2");
        check(|(_, head, ..)| head.clear(), "head");
        check(|(_, _, last, ..)| *last = 1025, "last: 1025 is more than 1024");
        check(|(.., probability, _, _)| *probability = f64::NAN, "fixed_probability");
        check(|(.., thresholds, _)| thresholds.push(1.5), "drop_thresholds");
        check(|(.., max_tokens)| *max_tokens = 679, "679 is less than the 680 tokens of scales");
    }

    /// The window slides: with the published one every side of the middle can go, one by one.
    #[test]
    fn the_budget_is_what_removal_cannot_undercut() {
        let refused = |budget: usize, window: usize, keep: bool| {
            let mut generator = TrainingSchedule::published_256px(keep);
            let TrainingSchedule::Random { max_tokens, trim_window, fixed_probability, .. } =
                &mut generator
            else {
                unreachable!()
            };
            (*max_tokens, *trim_window, *fixed_probability) = (budget, window, 0.0);
            generator.validate().err()
        };
        // 1 + 4 + 256.
        for window in [2, 4, 100] {
            assert_eq!(refused(261, window, true), None);
            assert!(refused(260, window, true).unwrap().contains("the 261 tokens"));
        }
        // Without the last side in safety, only the head stays.
        assert_eq!(refused(5, 1, false), None);
        assert!(refused(4, 4, false).unwrap().contains("the 5 tokens"));
        // A window of the last side alone has nothing to remove: 6..=10, 14 and 15 all stay.
        let whole = 261 + 36 + 49 + 64 + 81 + 100 + 196 + 225;
        for (window, keep) in [(1, true), (0, true), (0, false)] {
            assert_eq!(refused(whole, window, keep), None);
            assert!(refused(whole - 1, window, keep).unwrap().contains(&format!("the {whole} ")));
        }
    }

    /// Every list of sides that a random draw can end with: all choices, one by one.
    fn outcomes(generator: &TrainingSchedule) -> BTreeSet<Vec<usize>> {
        let TrainingSchedule::Random {
            head,
            pools,
            last,
            drop_thresholds,
            max_tokens,
            trim_window,
            keep_last,
            ..
        } = generator
        else {
            unreachable!()
        };
        let mut lists = vec![head.clone()];
        for pool in pools {
            let n = pool.to + 1 - pool.from;
            let subsets = (0..1u32 << n).filter(|bits| bits.count_ones() as usize == pool.count);
            let with = move |list: &Vec<usize>, bits: u32| {
                let chosen = (0..n).filter(|i| bits >> i & 1 == 1).map(|i| pool.from + i);
                list.iter().copied().chain(chosen).collect::<Vec<_>>()
            };
            let all = subsets.flat_map(|bits| lists.iter().map(move |list| with(list, bits)));
            lists = all.collect();
        }
        let mut found = BTreeSet::new();
        let mut open: Vec<(Vec<usize>, usize)> =
            lists.into_iter().map(|list| ([list, vec![*last]].concat(), 0)).collect();
        let mut seen = BTreeSet::new();
        while let Some((list, drops)) = open.pop() {
            if !seen.insert((list.clone(), drops)) {
                continue;
            }
            let without = |i: usize| [&list[..i], &list[i + 1..]].concat();
            if drops < drop_thresholds.len() {
                let middle = head.len()..list.len() - 1;
                open.extend(middle.map(|i| (without(i), drops + 1)));
                // No further drop.
                open.push((list.clone(), usize::MAX));
            } else if list.iter().map(|side| side * side).sum::<usize>() > *max_tokens {
                let may_go = |i: &usize| {
                    *i >= head.len()
                        && i + trim_window >= list.len()
                        && (!keep_last || i + 1 < list.len())
                };
                let go: Vec<usize> = (0..list.len()).filter(may_go).collect();
                if go.is_empty() {
                    found.insert(list.clone());
                }
                open.extend(go.into_iter().map(|i| (without(i), usize::MAX)));
            } else {
                found.insert(list);
            }
        }
        found
    }

    prop_compose! {
        fn generators()(
            head_len in 1usize..3,
            pools in prop::collection::vec((0usize..2, 0usize..4, 0usize..4), 0..3),
            gap in 1usize..3,
            drop_thresholds in prop::collection::vec(0.0f64..1.0, 0..3),
            max_tokens in 0usize..160,
            trim_window in 0usize..5,
            keep_last: bool,
            (fixed, fixed_probability) in prop_oneof![
                Just(("1_2", 0.0)), Just(("1_2_3_4_5", 0.3)), Just(("1_2_3_4_5", 1.0)),
            ],
        ) -> TrainingSchedule {
            let mut floor = head_len;
            let mut made = Vec::new();
            for (gap, extra, count) in pools {
                let from = floor + 1 + gap;
                floor = from + extra;
                made.push(SidePool { from, to: floor, count: count.min(extra + 1) });
            }
            TrainingSchedule::Random {
                scales: fixed.parse().unwrap(),
                fixed_probability,
                head: (1..=head_len).collect(),
                pools: made,
                last: floor + gap,
                drop_thresholds,
                max_tokens,
                trim_window,
                keep_last,
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn what_is_accepted_keeps_the_budget_and_what_is_refused_can_exceed_it(
            generator in generators(),
        ) {
            let TrainingSchedule::Random { scales, fixed_probability, max_tokens, .. } = &generator
            else { unreachable!() };
            let all = outcomes(&generator);
            let mut worst = 0;
            if *fixed_probability < 1.0 {
                worst = all.iter().map(|list| tokens(list)).max().unwrap();
            }
            if *fixed_probability > 0.0 {
                worst = worst.max(scales.n_tokens());
            }
            match generator.validate() {
                Ok(()) => prop_assert!(worst <= *max_tokens, "{worst} tokens accepted"),
                Err(error) => {
                    prop_assert!(error.starts_with("max_tokens"), "{error}");
                    prop_assert!(worst > *max_tokens, "{error}, but the worst has {worst}");
                }
            }
            for i in 0..500 {
                let drawn = generator.draw(SeedTree::new(7).at(i)).unwrap();
                prop_assert!(drawn.n_tokens() <= worst);
                let sides = drawn.sizes().iter().map(|size| size.width).collect();
                prop_assert!(drawn == *scales || all.contains::<Vec<usize>>(&sides), "{drawn}");
            }
        }
    }
}
