//! Bits of a compressed header, the first one of a byte its highest.

use std::borrow::Cow;

/// Reader of bits; whatever is read behind the end is none.
pub(crate) struct Bits<'b> {
    bytes: Cow<'b, [u8]>,
    at: usize,
}

impl<'b> Bits<'b> {
    pub(crate) fn new(bytes: impl Into<Cow<'b, [u8]>>) -> Self {
        Bits { bytes: bytes.into(), at: 0 }
    }

    /// A number of so many bits.
    pub(crate) fn take(&mut self, count: u32) -> Option<u32> {
        (0..count).try_fold(0, |value, _| {
            let bit = self.bytes.get(self.at / 8)? >> (7 - self.at % 8) & 1;
            self.at += 1;
            Some(value << 1 | u32::from(bit))
        })
    }

    /// Passes so many bits.
    pub(crate) fn skip(&mut self, count: u32) -> Option<()> {
        self.at += count as usize;
        (self.at <= 8 * self.bytes.len()).then_some(())
    }

    /// Number of zeros before the next one, which is passed too.
    pub(crate) fn zeros(&mut self) -> Option<u32> {
        let mut zeros = 0;
        while self.take(1)? == 0 {
            zeros += 1;
        }
        Some(zeros)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_read_from_the_highest_on_and_none_behind_the_end() {
        let mut bits = Bits::new(&[0b1010_0001, 0b1000_0000][..]);
        assert_eq!((bits.take(3), bits.zeros(), bits.take(1)), (Some(5), Some(4), Some(1)));
        assert_eq!((bits.skip(6), bits.take(1), bits.take(1), bits.skip(1)), (Some(()), Some(0), None, None));
        assert_eq!(Bits::new(vec![0]).zeros(), None);
    }
}
