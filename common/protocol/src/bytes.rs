//! Sizes in bytes, as a person reads them.

use std::fmt;

/// Number of bytes as a person reads it.
#[derive(Clone, Copy, Debug)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 as f64 {
            b if b >= f64::from(1 << 30) => write!(f, "{:.2} GiB", b / f64::from(1 << 30)),
            b if b >= f64::from(1 << 20) => write!(f, "{:.1} MiB", b / f64::from(1 << 20)),
            b => write!(f, "{:.1} KiB", b / 1024.0),
        }
    }
}
