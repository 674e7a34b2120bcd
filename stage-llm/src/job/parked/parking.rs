//! Keys and values on their way to disk: on their device while that can spare the memory, then on the host, or given up.

use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{Result, Tensor};
use compute::staging::Staging;

use crate::job::parked::format::Layout;

/// Bytes that pass between device and file at a time.
pub const PIECE_BYTES: usize = 8 << 20;

/// Keys and values that are being written to disk. Whoever needs their memory takes it: the file is then written from a copy on the
/// host, or not at all.
#[derive(Debug)]
pub struct Parking {
    /// Name of the file.
    pub name: String,
    /// What the file holds, and where.
    pub layout: Layout,
    content: Mutex<Content>,
}

#[derive(Debug)]
enum Content {
    /// Buffers of all layers.
    There(Vec<Tensor>),
    /// Their bytes.
    OnHost(Vec<Vec<u8>>),
    /// Nobody has them any more.
    Gone,
}

impl Parking {
    /// Buffers that are to be written to the file of a name.
    pub fn new(name: String, layout: Layout, buffers: Vec<Tensor>) -> Self {
        Parking { name, layout, content: Mutex::new(Content::There(buffers)) }
    }

    /// `n` bytes from byte `at` on of buffer `i`, through `staging` where they are on a device; none once they are given up.
    ///
    /// # Errors
    /// The device's.
    pub fn read<'a>(&self, i: usize, at: usize, n: usize, staging: &'a mut Staging) -> Result<Option<&'a [u8]>> {
        match &*self.content() {
            Content::There(buffers) => staging.read(&buffers[i], at, n).map(Some),
            Content::OnHost(bytes) => {
                let to = staging.fill(n)?;
                to.copy_from_slice(&bytes[i][at..at + n]);
                Ok(Some(to))
            }
            Content::Gone => Ok(None),
        }
    }

    /// Lets go of the device's memory: what is not written yet is copied to the host if that `has_room`, else given up. The
    /// memory is free once the video itself is gone. Whether the file will be written.
    pub fn release(&self, has_room: bool) -> bool {
        let mut content = self.content();
        let copied = match &*content {
            Content::There(buffers) if has_room => buffers.iter().map(bytes_of).collect::<Result<Vec<_>>>(),
            Content::There(_) | Content::Gone => {
                *content = Content::Gone;
                return false;
            }
            Content::OnHost(_) => return true,
        };
        *content = match copied {
            Ok(bytes) => Content::OnHost(bytes),
            Err(error) => {
                tracing::warn!(video = self.name, %error, "a video that is being parked was not copied to the host");
                Content::Gone
            }
        };
        matches!(*content, Content::OnHost(_))
    }

    /// Gives the keys and values up, written or not.
    pub fn give_up(&self) {
        *self.content() = Content::Gone;
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes of a buffer, copied beside its device's work.
fn bytes_of(buffer: &Tensor) -> Result<Vec<u8>> {
    let bytes = buffer.elem_count() * buffer.dtype().size_in_bytes();
    let mut staging = Staging::new(buffer.device(), PIECE_BYTES.min(bytes))?;
    let mut copied = Vec::with_capacity(bytes);
    while copied.len() < bytes {
        let n = PIECE_BYTES.min(bytes - copied.len());
        copied.extend_from_slice(staging.read(buffer, copied.len(), n)?);
    }
    Ok(copied)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn what_is_copied_to_the_host_is_read_as_before_and_what_is_given_up_is_not() {
        let buffer =
            |first: f32| Tensor::arange(first, first + 50.0, &Device::Cpu).unwrap().to_dtype(DType::F16).unwrap();
        let parking = || Parking::new("a".to_owned(), Layout::default(), vec![buffer(0.0), buffer(50.0)]);
        let mut staging = Staging::new(&Device::Cpu, 40).unwrap();
        let mut read = |parking: &Parking| parking.read(1, 20, 40, &mut staging).unwrap().map(<[u8]>::to_vec);
        let there = parking();
        let before = read(&there);
        assert!(before.is_some() && there.release(true) && read(&there) == before && there.release(false));
        assert_eq!(read(&there), before);
        there.give_up();
        let released = parking();
        assert!(!released.release(false) && !released.release(true));
        assert_eq!([read(&there), read(&released)], [None, None]);
    }
}
