//! A set of sequence numbers as ranges: small where the numbers lie close, whatever their count.

use std::collections::BTreeMap;

/// First and last number of a range, both in it.
pub(super) type Range = (u64, u64);

/// A set of numbers from 1 on.
#[derive(Debug, Default)]
pub(super) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Adds every number of a range.
    pub(super) fn insert(&mut self, (mut first, mut last): Range) {
        // Every range that overlaps or touches the new one becomes part of it.
        while let Some((&start, &end)) = self.0.range(..=last.saturating_add(1)).next_back()
            && end >= first - 1
        {
            self.0.remove(&start);
            (first, last) = (first.min(start), last.max(end));
        }
        self.0.insert(first, last);
    }

    /// The highest number.
    pub(super) fn last(&self) -> Option<u64> {
        self.0.last_key_value().map(|(_, &last)| last)
    }

    /// The parts of a range that are not in the set.
    pub(super) fn outside(&self, range: Range) -> Vec<Range> {
        let mut parts = Vec::new();
        let mut next = Some(range.0);
        for (start, end) in self.within(range) {
            let Some(from) = next else { break };
            if from < start {
                parts.push((from, start - 1));
            }
            next = end.checked_add(1);
        }
        parts.extend(next.filter(|&from| from <= range.1).map(|from| (from, range.1)));
        parts
    }

    /// The parts of a range that are in the set.
    pub(super) fn within(&self, (first, last): Range) -> Vec<Range> {
        let before = self.0.range(..first).next_back();
        let overlapping = before.into_iter().chain(self.0.range(first..=last));
        let cut = overlapping.map(|(&start, &end)| (start.max(first), end.min(last)));
        cut.filter(|(start, end)| start <= end).collect()
    }
}

/// How many numbers a range holds.
pub(super) fn count((first, last): Range) -> u64 {
    (last - first).saturating_add(1)
}

/// `7` or `7 to 9`.
pub(super) fn show((first, last): Range) -> String {
    if first == last { first.to_string() } else { format!("{first} to {last}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ranges: &[Range]) -> Ranges {
        let mut set = Ranges::default();
        ranges.iter().for_each(|range| set.insert(*range));
        set
    }

    #[test]
    fn ranges_that_touch_become_one() {
        assert_eq!(set(&[(7, 9), (3, 3), (4, 6)]).0, BTreeMap::from([(3, 9)]));
        assert_eq!(set(&[(1, 2), (5, 6), (9, 9), (2, 8)]).0, BTreeMap::from([(1, 9)]));
        assert_eq!(set(&[(1, 2), (4, 5)]).0, BTreeMap::from([(1, 2), (4, 5)]));
        assert_eq!(set(&[(u64::MAX, u64::MAX), (1, u64::MAX - 1)]).0, BTreeMap::from([(1, u64::MAX)]));
    }

    #[test]
    fn a_range_is_parted_into_what_is_in_the_set_and_what_is_not() {
        let set = set(&[(3, 5), (8, 8)]);
        assert_eq!(set.outside((1, 10)), [(1, 2), (6, 7), (9, 10)]);
        assert_eq!(set.within((4, 8)), [(4, 5), (8, 8)]);
        assert_eq!(set.outside((3, 5)), []);
        assert_eq!(set.outside((6, 7)), [(6, 7)]);
        assert_eq!(set.within((6, 7)), []);
        assert_eq!(super::Ranges::default().outside((1, u64::MAX)), [(1, u64::MAX)]);
    }
}
