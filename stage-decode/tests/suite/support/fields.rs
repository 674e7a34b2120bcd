//! A film of H.264 whose pictures are fields, each in a packet of its own (PAFF), which no encoder here makes. Written bit by
//! bit: every block is stored as it is (`I_PCM`). ITU-T H.264, 7.3.

use std::path::{Path, PathBuf};

use super::{run, words};

/// Width of a picture in blocks, and height of a field.
const BLOCKS: [u32; 2] = [4, 2];

/// Bits of a unit.
#[derive(Default)]
struct Bits(Vec<bool>);

impl Bits {
    /// A number of so many bits.
    fn put(&mut self, count: u32, value: u32) -> &mut Self {
        self.0.extend((0..count).rev().map(|bit| value >> bit & 1 == 1));
        self
    }

    /// A number in Exp-Golomb code.
    fn golomb(&mut self, value: u32) -> &mut Self {
        let length = 32 - (value + 1).leading_zeros();
        self.put(length - 1, 0).put(length, value + 1)
    }

    fn align(&mut self) -> &mut Self {
        self.0.resize(self.0.len().next_multiple_of(8), false);
        self
    }

    /// The unit behind its start code, with its ending.
    fn unit(&mut self, header: u8) -> Vec<u8> {
        self.put(1, 1).align();
        let mut out = vec![0, 0, 0, 1, header];
        let mut zeros = 0;
        for byte in self.0.chunks(8).map(|bits| bits.iter().fold(0, |value, bit| value << 1 | u8::from(*bit))) {
            if zeros >= 2 && byte <= 3 {
                out.push(3);
                zeros = 0;
            }
            out.push(byte);
            zeros = if byte == 0 { zeros + 1 } else { 0 };
        }
        out
    }
}

/// Main profile, frame numbers of 4 bits, pictures in the order of the file, fields; 25 pictures a second.
fn sequence() -> Vec<u8> {
    let mut bits = Bits::default();
    bits.put(8, 77).put(8, 0).put(8, 30).golomb(0).golomb(0).golomb(2).golomb(1).put(1, 0);
    bits.golomb(BLOCKS[0] - 1).golomb(BLOCKS[1] - 1).put(1, 0).put(1, 0).put(1, 1).put(1, 0);
    bits.put(1, 1).put(4, 0).put(1, 1).put(32, 1).put(32, 50).put(1, 1).put(4, 0).unit(0x67)
}

fn parameters() -> Vec<u8> {
    let mut bits = Bits::default();
    bits.golomb(0).golomb(0).put(2, 0).golomb(0).golomb(0).golomb(0).put(3, 0).golomb(0).golomb(0).golomb(0);
    bits.put(3, 0b100).unit(0x68)
}

/// One field of the `n`-th picture.
fn field(n: u32, bottom: bool) -> Vec<u8> {
    let first = n == 0 && !bottom;
    let mut bits = Bits::default();
    bits.golomb(0).golomb(7).golomb(0).put(4, n % 16).put(1, 1).put(1, bottom.into());
    if first {
        bits.golomb(0).put(2, 0);
    } else {
        bits.put(1, 0);
    }
    bits.golomb(0).golomb(1);
    for block in 0..BLOCKS[0] * BLOCKS[1] {
        let (left, top) = (block % BLOCKS[0] * 16, block / BLOCKS[0] * 16);
        bits.golomb(25).align();
        for at in 0..256 {
            let (x, y) = (left + at % 16, 2 * (top + at / 16) + u32::from(bottom));
            bits.put(8, 16 + (2 * x + y + 13 * n) % 200);
        }
        for colour in [128 + 8 * n % 60, 100].into_iter().flat_map(|colour| [colour; 64]) {
            bits.put(8, colour);
        }
    }
    bits.unit(if first { 0x65 } else { 0x61 })
}

/// Makes a film of so many pictures, in the container that the ending and the options say.
pub fn make_fields(dir: &Path, name: &str, pictures: u32, options: &str) -> PathBuf {
    let delimiter = [0, 0, 0, 1, 9, 0xf0];
    let both = |n| [delimiter.to_vec(), field(n, false), delimiter.to_vec(), field(n, true)].concat();
    let stream = [sequence(), parameters(), (0..pictures).flat_map(both).collect()].concat();
    let raw = dir.join("fields.h264");
    std::fs::write(&raw, stream).unwrap();
    // ffmpeg gives the packets of a raw stream times only by way of a transport stream.
    let (timed, path) = (dir.join("fields.ts"), dir.join(name));
    for (from, to, more) in [(&raw, &timed, ""), (&timed, &path, options)] {
        if from != to {
            let line = format!("-v error -y -i {} -c copy {more} {}", from.display(), to.display());
            run("ffmpeg", &words(&line));
        }
    }
    path
}
