//! Picture in memory: rows of RGB, each pixel padded to four bytes, so that vector instructions take whole pixels.

/// RGB picture; the fourth byte of a pixel has no meaning.
#[derive(Clone, Debug, Default)]
pub struct Picture {
    width: usize,
    height: usize,
    pixels: Vec<[u8; 4]>,
}

/// Rotation that turns a decoded picture upright.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Turn {
    /// None: it is upright already.
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
}

impl Turn {
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

    /// The picture turned upright, in `out`.
    pub fn turned<'a>(&'a self, turn: Turn, out: &'a mut Picture) -> &'a Picture {
        let (w, h) = (self.width, self.height);
        let at = |x: usize, y: usize| self.pixels[y * w + x];
        match turn {
            Turn::None => return self,
            Turn::Right => {
                for (y, row) in out.rows_mut(h, w).enumerate() {
                    row.iter_mut().enumerate().for_each(|(x, p)| *p = at(y, h - 1 - x));
                }
            }
            Turn::Half => {
                for (y, row) in out.rows_mut(w, h).enumerate() {
                    row.iter_mut().enumerate().for_each(|(x, p)| *p = at(w - 1 - x, h - 1 - y));
                }
            }
            Turn::Left => {
                for (y, row) in out.rows_mut(h, w).enumerate() {
                    row.iter_mut().enumerate().for_each(|(x, p)| *p = at(w - 1 - y, x));
                }
            }
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
        let upright = |turn, out: &mut Picture| lying.turned(turn, out).to_rgb();
        assert_eq!(upright(Turn::Right, &mut out), picture(2, &[&[4, 1], &[5, 2], &[6, 3]]).to_rgb());
        assert_eq!((out.width(), out.height()), (2, 3));
        assert_eq!(upright(Turn::Left, &mut out), picture(2, &[&[3, 6], &[2, 5], &[1, 4]]).to_rgb());
        assert_eq!(upright(Turn::Half, &mut out), picture(3, &[&[6, 5, 4], &[3, 2, 1]]).to_rgb());
        assert_eq!(upright(Turn::None, &mut out), lying.to_rgb());
    }
}
