//! Measurements of the pipeline on a GPU machine without GStreamer: frames and audio are made or brought, all else is real.
//!
//! In reading order: [`footage`] (frames and audio without a decoder), [`synthetic`] (a stage-decode of them), [`driver`]
//! (GPU memory in use), [`kernels`] (each kernel alone), [`stages`] (each stage without a bus), [`passes`] (passes of the encoders by their size), [`texts`] (steps of several texts
//! about one video), [`parked`] (videos to disk and back), [`run`] (one pipeline, one question), [`floor`] (least times of a
//! GPU), [`bench`] (one configuration, several videos, a soak), [`table`] (all configurations),
//! [`placement`] (stages on one GPU and on two).

pub mod bench;
pub mod driver;
pub mod floor;
pub mod footage;
pub mod kernels;
pub mod parked;
pub mod passes;
pub mod placement;
pub mod run;
pub mod stages;
pub mod synthetic;
pub mod table;
pub mod texts;
