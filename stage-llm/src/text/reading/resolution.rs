//! Resolution of an answer's times: how many seconds its last written digit stands for.

/// Resolution of an answer in fractions, seconds: the model answers with fractions of what it watched, so a time is as fine as
/// the decimals that it wrote, the fewest of them: `watched_s / 10^decimals`. An answer without fractions has those that the
/// model was taught.
pub fn resolution_s(answer: &str, watched_s: f64) -> f64 {
    written_decimals(answer).map_or_else(|| taught_s(watched_s), |decimals| of_fractions_s(decimals, watched_s))
}

/// Resolution that the model was taught, seconds: it writes 2 decimals for videos under 100 s, 3 under 1000 s, 4 from there
/// on.
pub fn taught_s(watched_s: f64) -> f64 {
    let decimals = match watched_s {
        s if s < 100.0 => 2,
        s if s < 1000.0 => 3,
        _ => 4,
    };
    of_fractions_s(decimals, watched_s)
}

/// Resolution of fractions with so many decimals, seconds.
pub fn of_fractions_s(decimals: usize, watched_s: f64) -> f64 {
    // Beyond 12 no f64 tells them apart.
    in_microseconds(watched_s / 10f64.powi(decimals.min(12) as i32))
}

/// Resolution of seconds with so many decimals, seconds.
pub fn of_seconds_s(decimals: usize) -> f64 {
    in_microseconds(10f64.powi(-(decimals.min(12) as i32)))
}

/// A microsecond is below every frame; a quotient's 17 digits are no figure for a person.
fn in_microseconds(resolution_s: f64) -> f64 {
    (resolution_s * 1e6).round() / 1e6
}

/// Fewest digits behind the point of any number in a text.
fn written_decimals(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let points = bytes.windows(2).enumerate().filter(|(_, pair)| pair[0].is_ascii_digit() && pair[1] == b'.');
    let decimals = points.map(|(at, _)| bytes[at + 2..].iter().take_while(|b| b.is_ascii_digit()).count());
    decimals.filter(|&n| n > 0).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_as_fine_as_it_is_written() {
        for (answer, watched_s, resolution) in [
            ("0.10-0.25", 20.0, 0.2),
            ("0.123-0.456, 0.50-0.600", 500.0, 5.0),
            ("0.1234-0.4321", 3660.0, 0.366),
            ("none.", 62.3, 0.623),
            ("", 999.0, 0.999),
            ("", 1000.0, 0.1),
            ("0.5.", 30.0, 3.0),
        ] {
            assert_eq!(resolution_s(answer, watched_s), resolution, "{answer:?}");
        }
    }

    #[test]
    fn seconds_are_as_fine_as_their_last_digit() {
        assert_eq!([0, 1, 3, 40].map(of_seconds_s), [1.0, 0.1, 0.001, 0.0]);
    }
}
