//! Whether a figure of one build is within noise of the same figure of another build.

use crate::median::median;

/// How far the tree's median may be from the baseline's to be within noise, as a share of the baseline's.
const NOISE: f64 = 0.03;

/// How far the tree's median may be below that of the build that closed an issue, as a share of the latter.
const LOSS: f64 = 0.05;

/// Which values of a figure are the better ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    Higher,
    Lower,
}

/// The samples of one figure by one build.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// Of at least one sample; of none, nothing is a number.
    pub fn of(samples: &[f64]) -> Spread {
        Spread {
            median: median(samples.to_vec()),
            min: samples.iter().copied().fold(f64::NAN, f64::min),
            max: samples.iter().copied().fold(f64::NAN, f64::max),
        }
    }
}

/// How the tree's build compares with the baseline, and with the closing build where there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Better than the baseline by more than noise.
    Better,
    /// The median is within 3 % of the baseline's, or between the least and the most that the baseline had.
    WithinNoise,
    /// Worse than the baseline by more than noise.
    Worse,
    /// More than 5 % worse than the build that closed the issue, whatever the baseline says.
    BelowClosing,
}

impl Verdict {
    /// Judges the medians of a figure of which `better` values are the better ones.
    pub fn of(better: Better, tree: Spread, baseline: Spread, closing: Option<Spread>) -> Verdict {
        let gain = |before: Spread| match better {
            Better::Higher => change(before.median, tree.median),
            Better::Lower => -change(before.median, tree.median),
        };
        if closing.is_some_and(|closing| gain(closing) < -LOSS) {
            return Verdict::BelowClosing;
        }
        let is_inside = (baseline.min..=baseline.max).contains(&tree.median);
        match gain(baseline) {
            _ if is_inside => Verdict::WithinNoise,
            gain if gain.abs() <= NOISE => Verdict::WithinNoise,
            gain if gain > 0.0 => Verdict::Better,
            _ => Verdict::Worse,
        }
    }

    /// Whether the tree may stay as it is.
    pub fn holds(self) -> bool {
        matches!(self, Verdict::Better | Verdict::WithinNoise)
    }

    /// As the table has it.
    pub fn text(self) -> &'static str {
        match self {
            Verdict::Better => "better than before",
            Verdict::WithinNoise => "within noise of before",
            Verdict::Worse => "worse than before",
            Verdict::BelowClosing => "more than 5 % below the closing build",
        }
    }
}

/// From `before` to `after`, as a share of `before`.
pub fn change(before: f64, after: f64) -> f64 {
    if before == after { 0.0 } else { after / before - 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(min: f64, median: f64, max: f64) -> Spread {
        Spread { median, min, max }
    }

    fn steady(median: f64) -> Spread {
        spread(median, median, median)
    }

    #[test]
    fn a_spread_is_the_median_and_the_least_and_the_most_of_the_samples() {
        let seven = [5.0, 1.0, 9.0, 7.0, 3.0, 8.0, 2.0];
        assert_eq!(Spread::of(&seven), spread(1.0, 5.0, 9.0));
        assert!(Spread::of(&[]).min.is_nan());
    }

    #[test]
    fn three_percent_either_way_is_noise_and_more_is_not() {
        let of = |better, median| Verdict::of(better, steady(median), steady(100.0), None);
        for (median, if_higher, if_lower) in [
            (103.5, Verdict::Better, Verdict::Worse),
            (102.9, Verdict::WithinNoise, Verdict::WithinNoise),
            (100.0, Verdict::WithinNoise, Verdict::WithinNoise),
            (97.1, Verdict::WithinNoise, Verdict::WithinNoise),
            (96.5, Verdict::Worse, Verdict::Better),
        ] {
            assert_eq!(of(Better::Higher, median), if_higher, "{median}");
            assert_eq!(of(Better::Lower, median), if_lower, "{median}");
        }
    }

    #[test]
    fn what_the_baseline_itself_had_is_noise_however_far_from_its_median() {
        let baseline = spread(80.0, 100.0, 110.0);
        for (median, verdict) in [
            (80.0, Verdict::WithinNoise),
            (110.0, Verdict::WithinNoise),
            (79.9, Verdict::Worse),
            (110.1, Verdict::Better),
        ] {
            assert_eq!(
                Verdict::of(Better::Higher, steady(median), baseline, None),
                verdict,
                "{median}"
            );
        }
    }

    #[test]
    fn more_than_five_percent_below_the_closing_build_is_refused_though_the_baseline_is_as_slow() {
        let of =
            |better, closing| Verdict::of(better, steady(100.0), spread(90.0, 100.0, 110.0), Some(steady(closing)));
        assert_eq!(of(Better::Higher, 105.0), Verdict::WithinNoise);
        assert_eq!(of(Better::Higher, 106.0), Verdict::BelowClosing);
        assert_eq!(of(Better::Lower, 96.0), Verdict::WithinNoise);
        assert_eq!(of(Better::Lower, 94.0), Verdict::BelowClosing);
    }

    #[test]
    fn a_figure_that_is_nothing_in_both_builds_has_not_changed() {
        assert_eq!(change(0.0, 0.0), 0.0);
        assert_eq!(
            Verdict::of(Better::Lower, steady(0.0), steady(0.0), None),
            Verdict::WithinNoise
        );
        assert_eq!(
            Verdict::of(Better::Lower, steady(1.0), steady(0.0), None),
            Verdict::Worse
        );
    }
}
