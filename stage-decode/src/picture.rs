//! Picture in memory: rows of RGB, each pixel padded to four bytes, so that vector instructions take whole pixels.

/// RGB picture; the fourth byte of a pixel has no meaning.
#[derive(Clone, Debug, Default)]
pub struct Picture {
    width: usize,
    height: usize,
    pixels: Vec<[u8; 4]>,
}

/// Turn of a decoded picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Turn {
    /// None.
    #[default]
    None,
    /// By 90 degrees, clockwise.
    Right,
    /// By 180 degrees.
    Half,
    /// By 270 degrees, clockwise.
    Left,
}

impl Turn {
    /// The rotation by a clockwise angle in degrees; none for an angle that is not a multiple of 90, which would need
    /// interpolation.
    pub fn from_degrees(degrees: u32) -> Self {
        match degrees % 360 {
            90 => Turn::Right,
            180 => Turn::Half,
            270 => Turn::Left,
            _ => Turn::None,
        }
    }

    /// The clockwise angle in degrees.
    pub fn degrees(self) -> u32 {
        match self {
            Turn::None => 0,
            Turn::Right => 90,
            Turn::Half => 180,
            Turn::Left => 270,
        }
    }
}

/// One of the eight ways in which a decoded picture may have to be shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Orientation {
    /// Whether left and right are exchanged, before the turn.
    pub mirrored: bool,
    /// Turn after that.
    pub turn: Turn,
}

impl Orientation {
    /// The orientation that is a turn alone.
    pub fn turned(turn: Turn) -> Self {
        Orientation { mirrored: false, turn }
    }

    /// The orientation of a display matrix with `x' = a x + c y` and `y' = b x + d y` (ISO/IEC 14496-12, `tkhd`), whatever
    /// its scale; none for an angle that is not a multiple of 90 degrees.
    pub fn from_matrix([a, b, c, d]: [i32; 4]) -> Self {
        let (mirrored, turn) = match [a, b, c, d].map(i32::signum) {
            [0, 1, -1, 0] => (false, Turn::Right),
            [-1, 0, 0, -1] => (false, Turn::Half),
            [0, -1, 1, 0] => (false, Turn::Left),
            [-1, 0, 0, 1] => (true, Turn::None),
            [0, -1, -1, 0] => (true, Turn::Right),
            [1, 0, 0, -1] => (true, Turn::Half),
            [0, 1, 1, 0] => (true, Turn::Left),
            _ => (false, Turn::None),
        };
        Orientation { mirrored, turn }
    }

    /// The orientation of GStreamer's tag `image-orientation`, which counts as EXIF does: `rotate-90`, `flip-rotate-90`.
    pub fn from_tag(tag: &str) -> Self {
        let (mirrored, rest) = tag.strip_prefix("flip-").map_or((false, tag), |rest| (true, rest));
        let degrees = rest.strip_prefix("rotate-").and_then(|degrees| degrees.parse().ok());
        degrees.map_or(Orientation::default(), |degrees| Orientation { mirrored, turn: Turn::from_degrees(degrees) })
    }

    /// Width and height as shown, of stored ones.
    pub fn shown(self, width: u32, height: u32) -> (u32, u32) {
        if matches!(self.turn, Turn::Left | Turn::Right) { (height, width) } else { (width, height) }
    }
}

impl Picture {
    /// A picture from rows of packed RGB, three bytes a pixel.
    ///
    /// # Panics
    /// If `rgb` is not `width * height * 3` long.
    pub fn from_rgb(width: usize, height: usize, rgb: &[u8]) -> Self {
        assert_eq!(rgb.len(), width * height * 3, "three bytes a pixel. This is a bug.");
        let pixels = rgb.as_chunks::<3>().0.iter().map(|&[r, g, b]| [r, g, b, 0]).collect();
        Picture { width, height, pixels }
    }

    /// Rows of packed RGB, three bytes a pixel.
    pub fn to_rgb(&self) -> Vec<u8> {
        self.pixels.iter().flat_map(|p| [p[0], p[1], p[2]]).collect()
    }

    /// Number of pixels in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The rows, top first.
    pub fn rows(&self) -> impl Iterator<Item = &[[u8; 4]]> {
        self.pixels.chunks_exact(self.width.max(1))
    }

    /// Rows to be written, after a resize; memory is reused from picture to picture.
    pub(crate) fn rows_mut(&mut self, width: usize, height: usize) -> impl Iterator<Item = &mut [[u8; 4]]> {
        self.width = width;
        self.height = height;
        self.pixels.resize(width * height, [0; 4]);
        self.pixels.chunks_exact_mut(width.max(1))
    }

    /// The picture as it is to be shown, in `out`.
    pub fn shown<'a>(&'a self, orientation: Orientation, out: &'a mut Picture) -> &'a Picture {
        if orientation == Orientation::default() {
            return self;
        }
        let (w, h) = (self.width, self.height);
        let at = |x: usize, y: usize| self.pixels[y * w + if orientation.mirrored { w - 1 - x } else { x }];
        fn fill((width, height): (usize, usize), out: &mut Picture, from: impl Fn(usize, usize) -> [u8; 4]) {
            for (y, row) in out.rows_mut(width, height).enumerate() {
                row.iter_mut().enumerate().for_each(|(x, pixel)| *pixel = from(x, y));
            }
        }
        match orientation.turn {
            Turn::None => fill((w, h), out, at),
            Turn::Right => fill((h, w), out, |x, y| at(y, h - 1 - x)),
            Turn::Half => fill((w, h), out, |x, y| at(w - 1 - x, h - 1 - y)),
            Turn::Left => fill((h, w), out, |x, y| at(w - 1 - y, x)),
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(width: usize, rows: &[&[u8]]) -> Picture {
        let rgb: Vec<u8> = rows.concat().iter().flat_map(|&v| [v, v, v]).collect();
        Picture::from_rgb(width, rows.len(), &rgb)
    }

    #[test]
    fn a_turn_to_the_right_brings_the_bottom_left_corner_to_the_top_left() {
        let lying = picture(3, &[&[1, 2, 3], &[4, 5, 6]]);
        let mut out = Picture::default();
        let mut upright = |mirrored, turn| {
            let shown = lying.shown(Orientation { mirrored, turn }, &mut out);
            (shown.width(), shown.to_rgb().chunks(3).map(|p| p[0]).collect::<Vec<_>>())
        };
        assert_eq!(upright(false, Turn::None), (3, vec![1, 2, 3, 4, 5, 6]));
        assert_eq!(upright(false, Turn::Right), (2, vec![4, 1, 5, 2, 6, 3]));
        assert_eq!(upright(false, Turn::Half), (3, vec![6, 5, 4, 3, 2, 1]));
        assert_eq!(upright(false, Turn::Left), (2, vec![3, 6, 2, 5, 1, 4]));
        assert_eq!(upright(true, Turn::None), (3, vec![3, 2, 1, 6, 5, 4]));
        assert_eq!(upright(true, Turn::Right), (2, vec![6, 3, 5, 2, 4, 1]));
        assert_eq!(upright(true, Turn::Half), (3, vec![4, 5, 6, 1, 2, 3]));
        assert_eq!(upright(true, Turn::Left), (2, vec![1, 4, 2, 5, 3, 6]));
    }

    #[test]
    fn an_orientation_moves_corners_as_its_matrix_does() {
        let lying = picture(2, &[&[1, 2], &[3, 4]]);
        for matrix in [
            [1, 0, 0, 1],
            [0, 1, -1, 0],
            [-1, 0, 0, -1],
            [0, -1, 1, 0],
            [-1, 0, 0, 1],
            [0, -1, -1, 0],
            [1, 0, 0, -1],
            [0, 1, 1, 0],
        ] {
            let [a, b, c, d] = matrix;
            let mut out = Picture::default();
            let shown = lying.shown(Orientation::from_matrix(matrix.map(|v| v * 0x1_0000)), &mut out);
            let values: Vec<u8> = shown.rows().flatten().map(|p| p[0]).collect();
            // Corners lie at -1 and 1, so that the matrix turns about the middle.
            for (x, y, value) in [(-1, -1, 1), (1, -1, 2), (-1, 1, 3), (1, 1, 4)] {
                let (to_x, to_y) = (a * x + c * y, b * x + d * y);
                let place = (to_y + 1) / 2 * 2 + (to_x + 1) / 2;
                assert_eq!(values[place as usize], value, "{matrix:?}");
            }
        }
    }

    #[test]
    fn tags_name_all_eight_orientations() {
        let named = |tag| Orientation::from_tag(tag);
        assert_eq!(named("rotate-270"), Orientation::turned(Turn::Left));
        assert_eq!(named("flip-rotate-0"), Orientation { mirrored: true, turn: Turn::None });
        assert_eq!(named("flip-rotate-180"), Orientation { mirrored: true, turn: Turn::Half });
        assert_eq!([named("upside-down"), named("flip-rotate-x")], [Orientation::default(); 2]);
    }
}
