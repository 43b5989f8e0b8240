//! Random training schedules as data (FlexVAR's training).

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
        /// Coarsest sides, always present (published: 1, 2).
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
        /// How many sides at the end may be removed for that (published: 4).
        trim_window: usize,
        /// Whether the last side is safe from that. The released code removes it in a third of its
        /// draws; the last scale is what is decoded, so ours keeps it by default.
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

    /// Checks that every draw can be made: pools large enough, sides increasing, a token budget
    /// that the sides which are never removed fit in.
    ///
    /// # Errors
    /// One line that names the field.
    pub fn validate(&self) -> Result<(), String> {
        let Self::Random {
            fixed_probability,
            head,
            pools,
            last,
            drop_thresholds,
            max_tokens,
            trim_window,
            ..
        } = self
        else {
            return Ok(());
        };
        if !(0.0..=1.0).contains(fixed_probability) {
            return Err(format!("fixed_probability: {fixed_probability} is no probability"));
        }
        if let Some(x) = drop_thresholds.iter().find(|x| !(0.0..=1.0).contains(*x)) {
            return Err(format!("drop_thresholds: {x} is not in 0..1"));
        }
        if head.first() != Some(&1) {
            return Err("head: starts at 1".into());
        }
        for pool in pools {
            if pool.from > pool.to || pool.count > pool.to - pool.from + 1 {
                return Err(format!(
                    "pools: cannot draw {} of {}..={}",
                    pool.count, pool.from, pool.to
                ));
            }
        }
        // Pools are sorted, disjoint and between head and last, so that every draw increases.
        let mut floor = 0;
        for side in head.iter().chain([last]) {
            if *side <= floor {
                return Err(format!("head and last must increase: {side} after {floor}"));
            }
            floor = *side;
        }
        let mut floor = head[head.len() - 1];
        for pool in pools {
            if pool.from <= floor || pool.to >= *last {
                return Err(format!(
                    "pools: {}..={} must lie above {floor} and below the last side {last}",
                    pool.from, pool.to
                ));
            }
            floor = pool.to;
        }
        let middle: usize = pools.iter().map(|pool| pool.count).sum();
        let removable = middle.min(trim_window.saturating_sub(1));
        // The worst draw: the largest sides, of which only `removable` may go.
        let mut worst: Vec<usize> =
            pools.iter().flat_map(|pool| (pool.to + 1 - pool.count)..=pool.to).collect();
        worst.truncate(worst.len() - removable);
        let tokens: usize = head.iter().chain(&worst).chain([last]).map(|side| side * side).sum();
        if tokens > *max_tokens {
            return Err(format!(
                "max_tokens: {max_tokens} is less than the {tokens} tokens that cannot be removed"
            ));
        }
        Ok(())
    }

    /// One draw.
    ///
    /// # Errors
    /// If the generator's data do not make an increasing schedule (see [`validate`](Self::validate)).
    pub fn draw(&self, seed: SeedTree) -> Result<ScaleSchedule, ScheduleError> {
        let Self::Random {
            scales,
            fixed_probability,
            head,
            pools,
            last,
            drop_thresholds,
            max_tokens,
            trim_window,
            keep_last,
        } = self
        else {
            return Ok(self.fixed().clone());
        };
        if f64::from(seed.child("fixed").uniform(0)) < *fixed_probability {
            return Ok(scales.clone());
        }
        let mut sides = head.clone();
        for (i, pool) in pools.iter().enumerate() {
            let order = seed.child("pool").at(i as u64).permutation(pool.to + 1 - pool.from);
            let mut drawn: Vec<usize> = order[..pool.count].iter().map(|o| pool.from + o).collect();
            drawn.sort_unstable();
            sides.extend(drawn);
        }
        sides.push(*last);

        let x = f64::from(seed.child("drop").uniform(0));
        let removals = seed.child("remove");
        let mut removed = 0;
        let mut remove = |sides: &mut Vec<usize>, from: usize, to: usize| {
            sides.remove(from + removals.below(removed, to - from));
            removed += 1;
        };
        for threshold in drop_thresholds {
            if x > *threshold && sides.len() > head.len() + 1 {
                let end = sides.len() - 1;
                remove(&mut sides, head.len(), end);
            }
        }
        while sides.iter().map(|side| side * side).sum::<usize>() > *max_tokens {
            let end = sides.len() - usize::from(*keep_last);
            let start = sides.len().saturating_sub(*trim_window).max(head.len());
            if start >= end {
                break;
            }
            remove(&mut sides, start, end);
        }
        ScaleSchedule::squares(&sides)
    }
}

#[cfg(test)]
mod tests {
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
    fn the_released_behaviour_loses_the_last_side_in_a_third_of_the_draws() {
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
        let broken = |edit: fn(&mut Vec<SidePool>, &mut usize)| {
            let mut generator = TrainingSchedule::published_256px(true);
            let TrainingSchedule::Random { pools, max_tokens, .. } = &mut generator else {
                unreachable!()
            };
            edit(pools, max_tokens);
            generator.validate().unwrap_err()
        };
        assert!(broken(|pools, _| pools[0].count = 9).contains("pools"));
        assert!(broken(|pools, _| pools[1].to = 16).contains("below the last"));
        assert!(broken(|pools, _| pools[0].from = 2).contains("above"));
        assert!(broken(|_, max| *max = 300).contains("max_tokens"));
    }
}
