//! Dump of the last job's frames and samples, as the next stages received them: `frames.npy` and `pcm.npy`, which are there once
//! they are whole.

use std::io;
use std::path::Path;

use config::replace;
use protocol::error::{ErrorKind, JobError};
use protocol::message::Output;
use protocol::plan::FRAME_SIDE;
use protocol::stage::{Port, Stop};

use crate::npy::{Element, NpyWriter};

/// Port that writes what passes through it. An absent modality leaves no file.
pub struct DumpPort<'a> {
    port: &'a mut dyn Port,
    dir: &'a Path,
    frames: Option<NpyWriter>,
    pcm: Option<NpyWriter>,
}

impl<'a> DumpPort<'a> {
    /// A new dump in `dir`; an earlier one there is removed.
    ///
    /// # Errors
    /// `internal` with the path, when the directory cannot be written.
    pub fn new(port: &'a mut dyn Port, dir: &'a Path) -> Result<Self, JobError> {
        for name in ["frames.npy", "pcm.npy"] {
            replace::remove(&dir.join(name)).map_err(|e| unwritable(dir, &e))?;
        }
        Ok(DumpPort { port, dir, frames: None, pcm: None })
    }

    /// Closes the files.
    ///
    /// # Errors
    /// As [`DumpPort::new`].
    pub fn finish(self) -> Result<(), JobError> {
        for writer in [self.frames, self.pcm].into_iter().flatten() {
            writer.finish().map_err(|e| unwritable(self.dir, &e))?;
        }
        Ok(())
    }

    fn write(&mut self, output: &Output<'_>) -> io::Result<()> {
        match output {
            Output::Frames(batch) if batch.tensor.rows() > 0 => {
                if self.frames.is_none() {
                    let path = self.dir.join("frames.npy");
                    self.frames = Some(NpyWriter::create(&path, Element::U8, &[FRAME_SIDE, FRAME_SIDE, 3])?);
                }
                self.frames.iter_mut().try_for_each(|w| w.append(batch.tensor.data()))
            }
            Output::Pcm(window) if window.tensor.rows() > 0 => {
                if self.pcm.is_none() {
                    self.pcm = Some(NpyWriter::create(&self.dir.join("pcm.npy"), Element::F32, &[])?);
                }
                self.pcm.iter_mut().try_for_each(|w| w.append_pcm(&window.tensor.to_i16()))
            }
            _ => Ok(()),
        }
    }
}

impl Port for DumpPort<'_> {
    fn emit(&mut self, output: Output<'_>) -> Result<(), Stop> {
        self.write(&output).map_err(|e| unwritable(self.dir, &e))?;
        self.port.emit(output)
    }

    fn cancelled(&self) -> bool {
        self.port.cancelled()
    }
}

fn unwritable(dir: &Path, e: &io::Error) -> JobError {
    JobError::new(ErrorKind::Internal, format!("cannot write the dump to {}: {e}", dir.display()))
        .hint("choose a directory that stage-decode can write, or unset decode.dump")
}
