//! Union of spans of time, asked about many times one after the other.

use std::ops::Range;

/// Union of spans, as disjoint ones in ascending order.
#[derive(Debug, PartialEq)]
pub(super) struct Spans(Vec<Range<i64>>);

impl Spans {
    /// The union of spans in any order.
    pub(super) fn new(mut spans: Vec<Range<i64>>) -> Self {
        spans.retain(|span| !span.is_empty());
        spans.sort_unstable_by_key(|span| span.start);
        let mut union: Vec<Range<i64>> = Vec::with_capacity(spans.len());
        for span in spans {
            match union.last_mut() {
                Some(last) if span.start <= last.end => last.end = last.end.max(span.end),
                _ => union.push(span),
            }
        }
        Spans(union)
    }

    /// A cursor at the first span.
    pub(super) fn cursor(&self) -> Cursor<'_> {
        Cursor { spans: &self.0, at: 0 }
    }
}

/// Position in a union of spans. A time near the last one costs nothing to find, whatever the number of spans.
pub(super) struct Cursor<'s> {
    spans: &'s [Range<i64>],
    /// First span that does not end before the last time.
    at: usize,
}

impl Cursor<'_> {
    /// Whether the union holds a time.
    pub(super) fn contains(&mut self, time: i64) -> bool {
        let ends_before = |span: &Range<i64>| span.end <= time;
        let stands = self.at == 0 || ends_before(&self.spans[self.at - 1]);
        // Times ascend, but for the few places by which pictures are reordered.
        match self.spans.get(self.at) {
            Some(span) if stands && !ends_before(span) => {}
            Some(_) if stands && self.spans.get(self.at + 1).is_none_or(|next| !ends_before(next)) => self.at += 1,
            None if stands => {}
            _ => self.at = self.spans.partition_point(ends_before),
        }
        self.spans.get(self.at).is_some_and(|span| span.contains(&time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_that_overlap_or_touch_are_one() {
        let spans = vec![20..30, 0..5, 5..8, 7..7, 25..40, 50..51];
        assert_eq!(Spans::new(spans), Spans(vec![0..8, 20..40, 50..51]));
    }

    #[test]
    fn a_cursor_says_what_a_look_at_every_span_says_in_any_order_of_times() {
        let all = vec![3..6, 10..11, 12..20, 15..17, 30..35, i64::MAX - 5..i64::MAX];
        let union = Spans::new(all.clone());
        let mut cursor = union.cursor();
        let forth = -2..40i64;
        let back = (-2..40i64).rev();
        let jumps = (0..200i64).map(|n| n * 17 % 43 - 1);
        for time in forth.chain(back).chain(jumps).chain([i64::MAX - 3, 0, i64::MIN, i64::MAX, 12]) {
            let expected = all.iter().any(|span| span.contains(&time));
            assert_eq!(cursor.contains(time), expected, "{time}");
        }
    }
}
