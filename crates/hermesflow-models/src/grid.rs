//! Extrapolation (outpainting) as geometry: a grid of image codes that grows, and the square windows of it that the
//! model fills.
//!
//! As in Show-o's `inference_t2i.py`, for an image of W×W codes: to extend the picture to the right, take the last `W/2
//! − offset` columns of the grid as the left part of a W×W window, let the model fill in the `W/2 + offset` columns
//! beside them, and append these to the grid; likewise for the other directions. Finally the whole grid is decoded as
//! one picture. Two differences from the original:
//!
//! 1. To extend downwards, the original appends the wrong half (`image_left_part`, which does not even have the right
//!    shape); here it works like the other directions.
//! 2. The original can extend along one axis only. Here a grid that is wider than a window is extended up or down by a
//!    row of several windows, each of which overlaps with the one before; likewise a tall grid to the sides.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// The side on which a picture is extended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Beyond the left edge.
    Left,
    /// Beyond the right edge.
    Right,
    /// Beyond the upper edge.
    Up,
    /// Beyond the lower edge.
    Down,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Left => "left",
            Self::Right => "right",
            Self::Up => "up",
            Self::Down => "down",
        })
    }
}

impl FromStr for Direction {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "left" => Ok(Self::Left),
            "right" => Ok(Self::Right),
            "up" => Ok(Self::Up),
            "down" => Ok(Self::Down),
            _ => Err(format!("{name:?} is no direction; use left, right, up or down")),
        }
    }
}

/// The upper left corner of a window, counted in codes from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Corner {
    /// The row of the grid.
    pub row: usize,
    /// The column of the grid.
    pub column: usize,
}

/// Image codes in rows and columns; `None` is a code that is still to be generated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grid {
    height: usize,
    width: usize,
    codes: Vec<Option<u32>>,
}

impl Grid {
    /// The grid of one square image, whose codes are given row by row.
    ///
    /// # Errors
    /// If the number of codes is not a square.
    pub fn square(codes: &[u32]) -> Result<Self> {
        let side = codes.len().isqrt();
        if side == 0 || side * side != codes.len() {
            return Err(Error::Invalid(format!(
                "an image has {} codes, which is not the square of a side",
                codes.len()
            )));
        }
        Ok(Self { height: side, width: side, codes: codes.iter().copied().map(Some).collect() })
    }

    /// The number of rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The number of columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The codes, row by row.
    pub fn codes(&self) -> &[Option<u32>] {
        &self.codes
    }

    /// The codes, row by row; `None` if one is still to be generated.
    pub fn complete(&self) -> Option<Vec<u32>> {
        self.codes.iter().copied().collect()
    }

    /// A copy of the grid with `by` unknown rows or columns added on one side.
    #[must_use]
    pub fn extended(&self, direction: Direction, by: usize) -> Self {
        let (more_rows, more_columns) = match direction {
            Direction::Left | Direction::Right => (0, by),
            Direction::Up | Direction::Down => (by, 0),
        };
        let row_shift = if direction == Direction::Up { by } else { 0 };
        let column_shift = if direction == Direction::Left { by } else { 0 };
        let (height, width) = (self.height + more_rows, self.width + more_columns);
        let mut codes = vec![None; height * width];
        for (row, old) in self.codes.chunks_exact(self.width).enumerate() {
            let first = (row + row_shift) * width + column_shift;
            codes[first..first + self.width].copy_from_slice(old);
        }
        Self { height, width, codes }
    }

    /// The windows of `side`×`side` codes that cover the part which [`Grid::extended`] by `side − kept` has added: one
    /// window, or, along an edge longer than a window, several in a row that overlap by `kept`.
    pub fn windows(&self, direction: Direction, side: usize, kept: usize) -> Vec<Corner> {
        let starts = |size: usize| {
            let last = size - side;
            let mut starts: Vec<usize> = (0..last).step_by(side - kept).collect();
            starts.push(last);
            starts
        };
        let corner = |row: usize, column: usize| Corner { row, column };
        match direction {
            Direction::Left => starts(self.height).into_iter().map(|row| corner(row, 0)).collect(),
            Direction::Right => starts(self.height).into_iter().map(|row| corner(row, self.width - side)).collect(),
            Direction::Up => starts(self.width).into_iter().map(|column| corner(0, column)).collect(),
            Direction::Down => {
                starts(self.width).into_iter().map(|column| corner(self.height - side, column)).collect()
            }
        }
    }

    /// The codes of the window of `side`×`side` codes at `at`, row by row.
    pub fn window(&self, at: Corner, side: usize) -> Vec<Option<u32>> {
        let rows = at.row..at.row + side;
        rows.flat_map(|row| &self.codes[row * self.width + at.column..][..side]).copied().collect()
    }

    /// Sets the unknown codes of the window at `at` from its `side`×`side` codes, which are given row by row; known
    /// codes stay.
    pub fn fill(&mut self, at: Corner, side: usize, codes: &[u32]) {
        for (row, made) in codes.chunks_exact(side).enumerate() {
            let first = (at.row + row) * self.width + at.column;
            for (code, &made) in self.codes[first..first + side].iter_mut().zip(made) {
                code.get_or_insert(made);
            }
        }
    }
}

/// The number of rows or columns of a window of `side` codes that overlap with the picture: `side/2 − offset`.
///
/// # Errors
/// If nothing of the window would overlap, or nothing would be left to generate.
pub fn kept(side: usize, offset: i64) -> Result<usize> {
    let half = (side / 2) as i64;
    let most = half - 1;
    let least = half - side as i64 + 1;
    if !(least..=most).contains(&offset) {
        let message = format!("with images of {side}×{side} codes it must be between {least} and {most}");
        return Err(Error::Invalid(format!("offset {offset}: {message}")));
    }
    Ok((half - offset) as usize)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use Direction::{Down, Left, Right, Up};

    /// A numbered grid grown step by step; new codes are numbered from 1000. Also what the windows showed.
    fn grow(side: u32, directions: &[Direction], offset: i64) -> (Vec<Vec<i64>>, Grid) {
        let mut grid = Grid::square(&(0..side * side).collect::<Vec<_>>()).unwrap();
        let (side, mut new, mut seen) = (side as usize, 1000, Vec::new());
        let kept = kept(side, offset).unwrap();
        for &direction in directions {
            grid = grid.extended(direction, side - kept);
            for corner in grid.windows(direction, side, kept) {
                let window = grid.window(corner, side);
                seen.push(window.iter().map(|code| code.map_or(-1, i64::from)).collect());
                let mut number = || {
                    new += 1;
                    new - 1
                };
                let made: Vec<u32> = window.iter().map(|code| code.unwrap_or_else(&mut number)).collect();
                grid.fill(corner, side, &made);
            }
        }
        (seen, grid)
    }

    fn grown(directions: &[Direction], offset: i64, windows: &[[i64; 16]], shape: (usize, usize), codes: &[u32]) {
        let (seen, grid) = grow(4, directions, offset);
        assert_eq!(seen, windows.iter().map(|window| window.to_vec()).collect::<Vec<_>>(), "{directions:?}");
        assert_eq!((grid.height(), grid.width()), shape, "{directions:?}");
        assert_eq!(grid.complete().unwrap(), codes, "{directions:?}");
    }

    /// Windows and grids of the original's slices in NumPy, on a numbered 4×4 grid (downwards with the upper part).
    #[test]
    fn one_step_is_the_originals_slices() {
        grown(
            &[Right],
            0,
            &[[2, 3, -1, -1, 6, 7, -1, -1, 10, 11, -1, -1, 14, 15, -1, -1]],
            (4, 6),
            &[0, 1, 2, 3, 1000, 1001, 4, 5, 6, 7, 1002, 1003, 8, 9, 10, 11, 1004, 1005, 12, 13, 14, 15, 1006, 1007],
        );
        grown(
            &[Left],
            1,
            &[[-1, -1, -1, 0, -1, -1, -1, 4, -1, -1, -1, 8, -1, -1, -1, 12]],
            (4, 7),
            &[
                1000, 1001, 1002, 0, 1, 2, 3, 1003, 1004, 1005, 4, 5, 6, 7, 1006, 1007, 1008, 8, 9, 10, 11, 1009, 1010,
                1011, 12, 13, 14, 15,
            ],
        );
        grown(
            &[Up],
            -1,
            &[[-1, -1, -1, -1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]],
            (5, 4),
            &[1000, 1001, 1002, 1003, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
        );
        grown(
            &[Down],
            0,
            &[[8, 9, 10, 11, 12, 13, 14, 15, -1, -1, -1, -1, -1, -1, -1, -1]],
            (6, 4),
            &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1007],
        );
    }

    #[test]
    fn several_steps_are_the_originals_slices() {
        grown(
            &[Left, Left, Right],
            0,
            &[
                [-1, -1, 0, 1, -1, -1, 4, 5, -1, -1, 8, 9, -1, -1, 12, 13],
                [-1, -1, 1000, 1001, -1, -1, 1002, 1003, -1, -1, 1004, 1005, -1, -1, 1006, 1007],
                [2, 3, -1, -1, 6, 7, -1, -1, 10, 11, -1, -1, 14, 15, -1, -1],
            ],
            (4, 10),
            &[
                1008, 1009, 1000, 1001, 0, 1, 2, 3, 1016, 1017, 1010, 1011, 1002, 1003, 4, 5, 6, 7, 1018, 1019, 1012,
                1013, 1004, 1005, 8, 9, 10, 11, 1020, 1021, 1014, 1015, 1006, 1007, 12, 13, 14, 15, 1022, 1023,
            ],
        );
        grown(
            &[Right, Right],
            -1,
            &[
                [1, 2, 3, -1, 5, 6, 7, -1, 9, 10, 11, -1, 13, 14, 15, -1],
                [2, 3, 1000, -1, 6, 7, 1001, -1, 10, 11, 1002, -1, 14, 15, 1003, -1],
            ],
            (4, 6),
            &[0, 1, 2, 3, 1000, 1004, 4, 5, 6, 7, 1001, 1005, 8, 9, 10, 11, 1002, 1006, 12, 13, 14, 15, 1003, 1007],
        );
        let (_, grid) = grow(4, &[Down, Up, Down], 1);
        let codes = grid.complete().unwrap();
        assert_eq!((grid.height(), grid.width()), (13, 4));
        assert_eq!(codes[..12], (1012..1024).collect::<Vec<_>>());
        assert_eq!(codes[12..28], (0..16).collect::<Vec<_>>());
        assert_eq!(codes[28..40], (1000..1012).collect::<Vec<_>>());
        assert_eq!(codes[40..], (1024..1036).collect::<Vec<_>>());
    }

    #[test]
    fn a_wide_grid_grows_upwards_in_windows_that_follow_each_other() {
        let (seen, grid) = grow(4, &[Right, Up], 0);
        assert_eq!((grid.height(), grid.width()), (6, 6));
        assert!(grid.complete().is_some(), "every code is made");
        assert_eq!(seen.len(), 3, "one to the right, two upwards");
        assert_eq!(seen[1][..8], [-1; 8]);
        assert_eq!(seen[1][8..], [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(seen[2][..4], [1010, 1011, -1, -1], "keeps what the window before made");
        assert_eq!(seen[2][8..12], [2, 3, 1000, 1001]);
    }

    #[test]
    fn offsets_keep_and_make_at_least_one() {
        assert_eq!(kept(16, 0).unwrap(), 8);
        assert_eq!((kept(16, 7).unwrap(), kept(16, -7).unwrap()), (1, 15));
        assert!(kept(16, 8).unwrap_err().to_string().contains("between -7 and 7"));
        assert!(kept(16, -8).is_err());
        assert_eq!((kept(5, -2).unwrap(), kept(5, 1).unwrap()), (4, 1), "an odd side too");
        assert!(Grid::square(&[0; 15]).is_err());
    }
}
