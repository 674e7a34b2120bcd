//! Windows Media Audio as Windows writes it, which no encoder of ffmpeg's does, against ffmpeg.

use std::path::Path;

use crate::support::reference::{check_samples, reference_sound};
use crate::support::{decode, make, sound};
use tempfile::tempdir;

/// Bytes of each packet of sound at 44.1 kHz and 128 kbit/s.
const PACKET: usize = 743;
/// Bits in front of a packet with a reservoir: four of a number, four of how many blocks there are, and 13 of where the first begins.
const HEADER_BITS: usize = 21;

/// Makes a stream with a reservoir of bits of one without: what is left of each packet behind its block, of zeros, is a silent block that is
/// decoded with the next packet.
fn give_reservoir(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    // In front of each packet: how many bytes are repeated, its size, its time, and how much of it is here.
    let [size, here] = [&(PACKET as u32).to_le_bytes()[..], &(PACKET as u16).to_le_bytes()];
    let is_head = |head: &[u8]| head[0] == 8 && &head[1..5] == size && &head[9..] == here;
    let places: Vec<usize> = bytes.windows(11).enumerate().filter(|(_, w)| is_head(w)).map(|(at, _)| at + 11).collect();
    assert_eq!(places.len(), 87, "packets of four seconds");
    for (number, at) in places.into_iter().enumerate() {
        let packet = &mut bytes[at..at + PACKET];
        // ffmpeg fills it up with these.
        let block = packet.iter().rposition(|byte| *byte != b'N').unwrap() + 1;
        assert!((PACKET - block) * 8 >= HEADER_BITS, "room for a header");
        let header = ((number % 16) << 17 | 2 << 13) << 3;
        let mut shifted = header.to_be_bytes()[5..].to_vec();
        shifted.resize(PACKET + 1, 0);
        for (i, byte) in packet[..block].iter().enumerate() {
            shifted[2 + i] |= byte >> 5;
            shifted[3 + i] |= byte << 3;
        }
        packet.copy_from_slice(&shifted[..PACKET]);
    }
    let told = [10, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0];
    let flags = bytes.windows(told.len()).position(|w| w == told).expect("what a decoder is told") + 6;
    bytes[flags] = 3;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_sound_begins_and_ends_at_the_same_sample_with_and_without_a_reservoir_of_bits() {
    let dir = tempdir().unwrap();
    let files = [
        ("one.wma", "wmav1 -b:a 128k", 44_100),
        ("two.wma", "wmav2 -b:a 128k", 48_000),
        ("low.wma", "wmav1", 22_050),
        ("reservoir.wma", "wmav2 -b:a 128k", 44_100),
    ];
    for (name, codec, rate) in files {
        let path = make(dir.path(), name, &[sound(rate, 4.0)], &format!("-c:a {codec}"));
        if name == "reservoir.wma" {
            give_reservoir(&path);
        }
        let ours = decode(&path).1.pcm();
        check_samples(name, &ours, &reference_sound(&path, ""));
    }
}
