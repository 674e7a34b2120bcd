//! Cells of a frame, which become its tokens: how many there are follows from the checkpoint's image pool.

use std::fmt;

/// Patches per side of a frame, as the vision tower leaves them (MODEL.md 3).
pub const PATCH_SIDE: u32 = 27;
/// Patch grid per side once padded (MODEL.md 4).
pub const PADDED_SIDE: u32 = 28;
/// Side of the square that the space-to-depth merge folds into one token (MODEL.md 4).
pub const IMAGE_POOL: u32 = 2;

/// Rule that the grid of a frame follows. It is the checkpoint's: all stages of a job must have the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FrameGrid {
    /// 14 x 14 cells, fewer where a video has so many frames that they would exceed 60,000 together (MODEL.md 4, step 2).
    #[default]
    Budget,
    /// So many cells a side whatever the length (MODEL-7B.md, "Image adapter").
    Fixed(u32),
}

impl FrameGrid {
    /// Cells per side of each of `frames` sampled frames.
    pub fn side(self, frames: u64) -> u32 {
        match self {
            FrameGrid::Budget => grid_side(frames),
            FrameGrid::Fixed(side) => side,
        }
    }

    /// Whether there can be such a grid: a position is a fraction of the whole, so that one cell has none.
    pub(super) fn is_possible(self) -> bool {
        match self {
            FrameGrid::Budget => true,
            FrameGrid::Fixed(side) => (2..=PATCH_SIDE).contains(&side),
        }
    }
}

impl fmt::Display for FrameGrid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameGrid::Budget => f.write_str("14 x 14 cells or, in a long video, fewer"),
            FrameGrid::Fixed(side) => write!(f, "{side} x {side} cells whatever the length"),
        }
    }
}

/// Tokens per side of a frame's grid for `frames` sampled frames: 14 down to 5 (MODEL.md 4, step 2).
pub fn grid_side(frames: u64) -> u32 {
    let side = f64::from(PADDED_SIDE);
    let budget = 60_000.0 * f64::from(IMAGE_POOL * IMAGE_POOL);
    let cells = frames as f64 * side * side;
    if cells <= budget {
        return PADDED_SIDE / IMAGE_POOL;
    }
    let s = (side * (budget / cells).sqrt()) as u32;
    (s - s % IMAGE_POOL).max(10) / IMAGE_POOL
}
