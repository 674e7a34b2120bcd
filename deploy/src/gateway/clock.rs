//! Time ranges as texts, in the two forms that clients of this interface read.

use protocol::event::TimeRange;
use stage_llm::text::task::format_hms;

/// `HH:MM:SS-HH:MM:SS, ...`, truncated as the reference does.
pub fn whole_seconds(ranges: &[TimeRange]) -> String {
    joined(ranges, format_hms)
}

/// `HH:MM:SS.ff-HH:MM:SS.ff, ...`, to the nearest hundredth.
pub fn hundredths(ranges: &[TimeRange]) -> String {
    joined(ranges, |seconds| {
        let ticks = (seconds * 100.0).round().max(0.0) as u64;
        let whole = ticks / 100;
        format!("{:02}:{:02}:{:02}.{:02}", whole / 3600, whole / 60 % 60, whole % 60, ticks % 100)
    })
}

fn joined(ranges: &[TimeRange], form: impl Fn(f64) -> String) -> String {
    let range = |range: &TimeRange| format!("{}-{}", form(range.start_s), form(range.end_s));
    ranges.iter().map(range).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_written_with_all_their_zeros() {
        let range = |start_s, end_s| TimeRange { start_s, end_s, title: None };
        let ranges = [range(1.005, 2.999), range(3599.996, 36_000.5)];
        assert_eq!(hundredths(&ranges), "00:00:01.00-00:00:03.00, 01:00:00.00-10:00:00.50");
        assert_eq!(whole_seconds(&ranges), "00:00:01-00:00:02, 00:59:59-10:00:00");
        assert_eq!((hundredths(&[]).as_str(), whole_seconds(&[]).as_str()), ("", ""));
    }
}
