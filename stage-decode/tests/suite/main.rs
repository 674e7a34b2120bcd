//! Files as strangers have them, against ffmpeg and against what is known of them: one program, which is linked once. What must have a
//! process of its own is beside it (`slow`, `reach_out.rs`, `said_at_start.rs`).

mod against_ffmpeg;
mod bad_input;
mod burden;
mod colours;
mod damage;
mod edits;
mod kinds;
mod matrix;
mod parts;
mod pcm;
mod resize;
mod row;
mod sampled;
mod strangers;
mod support;
mod swapped;
mod transport;
mod whole_and_parts;
mod windows_media;
