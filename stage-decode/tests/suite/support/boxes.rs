//! Changes to mp4 and Matroska files that ffmpeg made: what it does not write itself.

use std::ops::Range;
use std::path::Path;

/// Bytes of a box with a content.
pub fn boxed(name: &[u8; 4], content: &[u8]) -> Vec<u8> {
    [&(8 + content.len() as u32).to_be_bytes()[..], name, content].concat()
}

fn numbers(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

/// An mp4 whose index lies behind the media.
pub struct Mp4(Vec<u8>);

impl Mp4 {
    pub fn read(path: &Path) -> Self {
        Mp4(std::fs::read(path).unwrap())
    }

    pub fn write(&self, path: &Path) {
        std::fs::write(path, &self.0).unwrap();
    }

    fn number(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.0[at..at + 4].try_into().unwrap())
    }

    /// The whole of the `nth` box of a name, header included, among those that follow each other in `within`.
    fn find(&self, within: Range<usize>, name: &[u8; 4], nth: usize) -> Option<Range<usize>> {
        let (mut at, mut left) = (within.start, nth);
        while at + 8 <= within.end {
            let end = at + self.number(at) as usize;
            if &self.0[at + 4..at + 8] == name {
                if left == 0 {
                    return Some(at..end);
                }
                left -= 1;
            }
            at = end;
        }
        None
    }

    fn inside(whole: Range<usize>) -> Range<usize> {
        whole.start + 8..whole.end
    }

    fn movie(&self) -> Range<usize> {
        self.find(0..self.0.len(), b"moov", 0).expect("an index")
    }

    fn track(&self, nth: usize) -> Range<usize> {
        self.find(Self::inside(self.movie()), b"trak", nth).expect("a track")
    }

    /// Appends a box to the `nth` track, from 0.
    pub fn append(&mut self, nth: usize, added: &[u8]) -> &mut Self {
        let (movie, track) = (self.movie(), self.track(nth));
        assert_eq!(movie.end, self.0.len(), "nothing lies behind the index");
        self.0.splice(track.end..track.end, added.iter().copied());
        for whole in [movie, track] {
            let size = (whole.len() + added.len()) as u32;
            self.0[whole.start..whole.start + 4].copy_from_slice(&size.to_be_bytes());
        }
        self
    }

    /// Gives the `nth` track edits of a length in seconds and a start in ticks of its media, or -1, and the movie a
    /// duration in seconds.
    pub fn edit(&mut self, nth: usize, edits: &[(f64, i32)], duration_s: f64) -> &mut Self {
        if let Some(old) = self.find(Self::inside(self.track(nth)), b"edts", 0) {
            self.0[old.start + 4..old.start + 8].copy_from_slice(b"free");
        }
        // ffmpeg counts a movie in milliseconds.
        let ticks = |seconds: f64| (seconds * 1e3).round() as u32;
        let rows: Vec<u8> = edits.iter().flat_map(|&(s, start)| numbers(&[ticks(s), start as u32, 0x1_0000])).collect();
        let list = boxed(b"elst", &[numbers(&[0, edits.len() as u32]), rows].concat());
        self.append(nth, &boxed(b"edts", &list));
        let header = self.find(Self::inside(self.movie()), b"mvhd", 0).unwrap().start;
        assert_eq!(self.number(header + 20), 1000);
        self.0[header + 24..header + 28].copy_from_slice(&ticks(duration_s).to_be_bytes());
        self
    }

    /// Says that the `nth` track has its chapters in the track of that number.
    pub fn chapters(&mut self, nth: usize, number: u32) -> &mut Self {
        self.append(nth, &boxed(b"tref", &boxed(b"chap", &numbers(&[number]))))
    }

    /// Sets the display matrix of the `nth` track: a, b, c and d.
    pub fn display(&mut self, nth: usize, [a, b, c, d]: [i32; 4]) -> &mut Self {
        let header = self.find(Self::inside(self.track(nth)), b"tkhd", 0).unwrap().start;
        let matrix = [a, b, 0, c, d, 0, 0, 0, 0x4000].map(|v: i32| (v * 0x1_0000) as u32);
        self.0[header + 48..header + 84].copy_from_slice(&numbers(&matrix));
        self
    }

    /// Describes samples of QuickTime (`in24` as `ipcm`, `fl32` as `fpcm`, version 1) as ISO/IEC 23003-5 does.
    pub fn as_camera_pcm(&mut self, nth: usize, code: &[u8; 4], little_endian: bool) -> &mut Self {
        let track = self.track(nth);
        let (old, bits) = if code == b"ipcm" { (b"in24", 24) } else { (b"fl32", 32) };
        // The code stands in the sample entry, and once more within it.
        let entry = track.start + self.0[track].windows(4).position(|w| w == old).unwrap() - 4;
        self.0[entry + 4..entry + 8].copy_from_slice(code);
        assert_eq!(self.0[entry + 16..entry + 18], [0, 1]);
        self.0[entry + 17] = 0;
        let wave = self.number(entry + 52) as usize;
        assert_eq!(&self.0[entry + 56..entry + 60], b"wave");
        let pcm = boxed(b"pcmC", &[0, 0, 0, 0, u8::from(little_endian), bits]);
        let parts = [boxed(b"free", &[0; 8]), pcm.clone(), boxed(b"free", &vec![0; wave - pcm.len() - 8])].concat();
        self.0[entry + 36..entry + 36 + parts.len()].copy_from_slice(&parts);
        self
    }

    /// Gives the `nth` track another codec's code.
    pub fn code(&mut self, nth: usize, old: &[u8; 4], new: &[u8; 4]) -> &mut Self {
        let track = self.track(nth);
        let places = self.0[track.clone()].windows(4).enumerate().filter(|(_, w)| w == old).map(|(i, _)| i);
        let places: Vec<usize> = places.collect();
        assert_eq!(places.len(), 1, "{old:?}");
        let at = track.start + places[0];
        self.0[at..at + 4].copy_from_slice(new);
        self
    }
}

/// Replaces the one place at which a file has these bytes.
pub fn replace(path: &Path, old: &[u8], new: &[u8]) {
    let mut bytes = std::fs::read(path).unwrap();
    assert_eq!(old.len(), new.len());
    let places: Vec<usize> = bytes.windows(old.len()).enumerate().filter(|(_, w)| *w == old).map(|(i, _)| i).collect();
    assert_eq!(places.len(), 1, "{old:?} in {}", path.display());
    bytes[places[0]..places[0] + old.len()].copy_from_slice(new);
    std::fs::write(path, bytes).unwrap();
}

/// Puts a projection in the place of the colours that a Matroska file tells of its picture (`-color_range tv` and more).
pub fn project(path: &Path, yaw: f32, roll: f32) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.windows(2).position(|w| w == [0x55, 0xb0]).expect("the colours of a picture");
    let length = usize::from(bytes[at + 2] & 0x7f);
    let element = |id: u16, content: &[u8]| [&id.to_be_bytes()[..], &[0x80 | content.len() as u8], content].concat();
    let parts = [element(0x7671, &[0]), element(0x7673, &yaw.to_be_bytes()), element(0x7675, &roll.to_be_bytes())];
    let projection = element(0x7670, &parts.concat());
    let rest = (3 + length).checked_sub(projection.len() + 2).expect("room for a projection");
    let void = [&[0xec, 0x80 | rest as u8][..], &vec![0; rest]].concat();
    bytes[at..at + 3 + length].copy_from_slice(&[projection, void].concat());
    std::fs::write(path, bytes).unwrap();
}
