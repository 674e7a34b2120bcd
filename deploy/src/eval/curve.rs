//! Share of queries whose score reaches a threshold, over all thresholds, and the area below that curve, which is a
//! benchmark's score.
//!
//! Thresholds and sums are numpy's to the last bit, by which the published scorer of VUE-TR computes: of its figures one lies on
//! a half of its last decimal, and is rounded as it was there.

/// Number of thresholds: 0.00, 0.01, ... 1.00.
pub const THRESHOLDS: usize = 101;

/// The thresholds. Each is its number times 0.01, as numpy's `linspace` makes them: dividing by 100 gives other last bits,
/// and a score that lies on a threshold then falls on its other side.
pub fn thresholds() -> [f64; THRESHOLDS] {
    std::array::from_fn(|at| if at + 1 == THRESHOLDS { 1.0 } else { at as f64 * 0.01 })
}

/// What a score has to be to count at a threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// At least the threshold.
    AtLeast,
    /// Above it.
    Above,
}

/// Share of scores, 0 to 1, that reach each threshold; none where there are no scores.
pub fn curve(scores: &[f64], reach: Reach) -> Option<[f64; THRESHOLDS]> {
    if scores.is_empty() {
        return None;
    }
    let mut sorted = scores.to_vec();
    sorted.sort_by(f64::total_cmp);
    let below = |threshold: f64| match reach {
        Reach::AtLeast => sorted.partition_point(|&score| score < threshold),
        Reach::Above => sorted.partition_point(|&score| score <= threshold),
    };
    Some(thresholds().map(|threshold| (sorted.len() - below(threshold)) as f64 / sorted.len() as f64))
}

/// Area below a curve over the thresholds, 0 to 1, by the trapezoidal rule.
pub fn area(curve: &[f64; THRESHOLDS]) -> f64 {
    let at = thresholds();
    sum(&std::array::from_fn(|n| (at[n + 1] - at[n]) * (curve[n + 1] + curve[n]) / 2.0))
}

/// Sum in the order of numpy's `sum` of up to 128 numbers: eight running sums of each eighth number, those by pairs, then what
/// is left behind the last eight.
fn sum(numbers: &[f64; THRESHOLDS - 1]) -> f64 {
    let (eights, rest) = numbers.as_chunks::<8>();
    let mut lanes = [0.0; 8];
    for eight in eights {
        lanes = std::array::from_fn(|lane| lanes[lane] + eight[lane]);
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    rest.iter().fold(((a + b) + (c + d)) + ((e + f) + (g + h)), |sum, number| sum + number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_multiples_of_a_hundredth_and_not_hundredths_of_a_number() {
        let at = thresholds();
        assert_eq!((at[0], at[50], at[100]), (0.0, 0.5, 1.0));
        let differ: Vec<usize> = (0..100).filter(|&n| at[n] != n as f64 / 100.0).collect();
        assert_eq!(differ, [35, 41, 47, 57, 69, 70, 82, 83, 94, 95]);
    }

    #[test]
    fn a_score_on_a_threshold_counts_there_only_where_at_least_is_asked() {
        let at_least = curve(&[0.5, 1.0], Reach::AtLeast).unwrap();
        assert_eq!((at_least[0], at_least[50], at_least[51], at_least[100]), (1.0, 1.0, 0.5, 0.5));
        let above = curve(&[0.0, 0.5, 1.0, 1.0], Reach::Above).unwrap();
        assert_eq!((above[0], above[49], above[50], above[99], above[100]), (0.75, 0.75, 0.5, 0.5, 0.0));
    }

    #[test]
    fn numbers_are_summed_up_in_the_order_of_numpy() {
        // From the first to the last, each 1 would be lost beside the first number.
        let numbers = std::array::from_fn(|n| if n == 0 { 1e16 } else { 1.0 });
        assert_eq!(numbers.iter().sum::<f64>(), 1e16);
        assert_eq!(sum(&numbers), 1e16 + 84.0);
        // 96 numbers stand in eight sums of twelve; the last four are added one by one.
        assert_eq!(sum(&std::array::from_fn(|n| if n >= 96 { 1.0 } else { 0.0 })), 4.0);
    }

    #[test]
    fn the_area_is_the_mean_of_the_scores_but_for_the_steps() {
        let area_of = |scores: &[f64], reach| area(&curve(scores, reach).unwrap());
        assert!((area_of(&[1.0], Reach::AtLeast) - 1.0).abs() < 1e-12);
        // Nothing is above 1: the last trapezoid has half of its height.
        assert!((area_of(&[1.0], Reach::Above) - 0.995).abs() < 1e-12);
        // Nothing is under 0: the first one has half.
        assert!((area_of(&[0.0], Reach::AtLeast) - 0.005).abs() < 1e-12);
        assert_eq!(area_of(&[0.0], Reach::Above), 0.0);
        assert!(
            (area_of(&[0.2, 0.4], Reach::AtLeast) - 0.305).abs() < 1e-12,
            "{}",
            area_of(&[0.2, 0.4], Reach::AtLeast)
        );
        assert!(curve(&[], Reach::AtLeast).is_none());
    }
}
