//! Contact sheets: pictures with words beside them, as one PNG.

use ab_glyph::{Font, FontRef, PxScale, ScaleFont, point};
use anyhow::{Context, Result};
use image::imageops::{FilterType, replace, resize};
use image::{Rgb, RgbImage};

const PAPER: Rgb<u8> = Rgb([250, 249, 246]);
const INK: Rgb<u8> = Rgb([34, 36, 40]);
const FAINT: Rgb<u8> = Rgb([120, 124, 130]);
const LINE: Rgb<u8> = Rgb([222, 220, 214]);
/// What is right or won.
pub const GOOD: Rgb<u8> = Rgb([28, 128, 72]);
/// What is wrong or lost.
pub const BAD: Rgb<u8> = Rgb([186, 52, 46]);

const MARGIN: u32 = 28;
const PICTURE: u32 = 128;
const GUTTER: u32 = 20;
const ROW: u32 = PICTURE + 34;
const HEAD: u32 = 92;
const TEXT: f32 = 15.0;

/// Words with a colour.
#[derive(Debug, Clone)]
pub struct Words {
    /// What is written.
    pub text: String,
    /// The colour of the words; plain ink if none.
    pub colour: Option<Rgb<u8>>,
}

impl Words {
    /// Plain words.
    pub fn plain(text: impl Into<String>) -> Self {
        Self { text: text.into(), colour: None }
    }

    /// Words in a colour.
    pub fn coloured(text: impl Into<String>, colour: Rgb<u8>) -> Self {
        Self { text: text.into(), colour: Some(colour) }
    }
}

/// One cell of a row.
#[derive(Debug, Clone)]
pub enum Cell {
    /// Words, one paragraph each, in a column of this width.
    Text(u32, Vec<Words>),
    /// A picture with a line below it; as high as all others, as wide as its shape asks.
    Picture(RgbImage, Words),
}

impl Cell {
    fn width(&self) -> u32 {
        match self {
            Self::Text(width, _) => *width,
            Self::Picture(picture, _) => shown_width(picture),
        }
    }
}

/// The width of a picture that is [`PICTURE`] high.
fn shown_width(picture: &RgbImage) -> u32 {
    let (width, height) = picture.dimensions();
    (PICTURE * width).div_ceil(height.max(1)).max(1)
}

/// Draws rows of cells below a title; `header` names the columns.
///
/// # Errors
/// When the embedded font cannot be read.
pub fn draw(title: &str, subtitle: &str, header: &[&str], rows: &[Vec<Cell>]) -> Result<RgbImage> {
    let pen = Pen::new()?;
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widest = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(Cell::width).max();
    let widths: Vec<u32> = (0..columns).filter_map(widest).collect();
    let width = 2 * MARGIN + widths.iter().sum::<u32>() + GUTTER * (widths.len().max(1) as u32 - 1);
    let width = width.max(640);
    let height = HEAD + 26 + ROW * rows.len() as u32 + MARGIN;
    let mut sheet = RgbImage::from_pixel(width, height, PAPER);
    pen.write(&mut sheet, (MARGIN, 22), 24.0, INK, title, true);
    pen.write(&mut sheet, (MARGIN, 56), 14.0, FAINT, subtitle, false);
    let mut x = MARGIN;
    for (name, cell_width) in header.iter().zip(&widths) {
        pen.write(&mut sheet, (x, HEAD), 13.0, FAINT, name, true);
        x += cell_width + GUTTER;
    }
    for (number, row) in rows.iter().enumerate() {
        let top = HEAD + 26 + ROW * number as u32;
        (MARGIN..width - MARGIN).for_each(|x| sheet.put_pixel(x, top - 4, LINE));
        let mut x = MARGIN;
        for (cell, column_width) in row.iter().zip(&widths) {
            match cell {
                Cell::Picture(picture, words) => {
                    // Small pictures keep their pixels, large ones are smoothed.
                    let filter = if picture.height() > PICTURE { FilterType::Triangle } else { FilterType::Nearest };
                    let scaled = resize(picture, shown_width(picture), PICTURE, filter);
                    replace(&mut sheet, &scaled, i64::from(x), i64::from(top + 4));
                    frame(&mut sheet, (x, top + 4), scaled.dimensions());
                    let colour = words.colour.unwrap_or(FAINT);
                    pen.write(&mut sheet, (x, top + PICTURE + 9), 13.0, colour, &words.text, false);
                }
                Cell::Text(width, paragraphs) => {
                    let mut y = top + 4;
                    for words in paragraphs {
                        for line in pen.wrap(&words.text, TEXT, *width) {
                            if y + 18 <= top + ROW - 6 {
                                pen.write(&mut sheet, (x, y), TEXT, words.colour.unwrap_or(INK), &line, false);
                            }
                            y += 20;
                        }
                        y += 8;
                    }
                }
            }
            x += column_width + GUTTER;
        }
    }
    Ok(sheet)
}

fn frame(sheet: &mut RgbImage, (left, top): (u32, u32), (width, height): (u32, u32)) {
    let across = (0..width).flat_map(|x| [(x, 0), (x, height - 1)]);
    let down = (0..height).flat_map(|y| [(0, y), (width - 1, y)]);
    across.chain(down).for_each(|(x, y)| sheet.put_pixel(left + x, top + y, LINE));
}

struct Pen {
    regular: FontRef<'static>,
    bold: FontRef<'static>,
}

impl Pen {
    fn new() -> Result<Self> {
        Ok(Self {
            regular: FontRef::try_from_slice(dejavu::sans::regular()).context("the embedded font")?,
            bold: FontRef::try_from_slice(dejavu::sans::bold()).context("the embedded font")?,
        })
    }

    fn write(&self, sheet: &mut RgbImage, at: (u32, u32), size: f32, colour: Rgb<u8>, text: &str, bold: bool) {
        let font = if bold { &self.bold } else { &self.regular };
        let scaled = font.as_scaled(PxScale::from(size));
        let mut x = at.0 as f32;
        let base = at.1 as f32 + scaled.ascent();
        for letter in text.chars() {
            let id = scaled.glyph_id(letter);
            let glyph = id.with_scale_and_position(size, point(x, base));
            if let Some(outline) = font.outline_glyph(glyph) {
                let bounds = outline.px_bounds();
                outline.draw(|dx, dy, share| {
                    let (px, py) = (bounds.min.x as i64 + i64::from(dx), bounds.min.y as i64 + i64::from(dy));
                    let inside =
                        (0..i64::from(sheet.width())).contains(&px) && (0..i64::from(sheet.height())).contains(&py);
                    if inside {
                        let pixel = sheet.get_pixel_mut(px as u32, py as u32);
                        for (value, ink) in pixel.0.iter_mut().zip(colour.0) {
                            *value = (f32::from(*value) * (1.0 - share) + f32::from(ink) * share) as u8;
                        }
                    }
                });
            }
            x += scaled.h_advance(id);
        }
    }

    /// Lines of at most `width` pixels, broken between words.
    fn wrap(&self, text: &str, size: f32, width: u32) -> Vec<String> {
        let scaled = self.regular.as_scaled(PxScale::from(size));
        let long = |text: &str| text.chars().map(|c| scaled.h_advance(scaled.glyph_id(c))).sum::<f32>();
        let mut lines: Vec<String> = Vec::new();
        for word in text.split_whitespace() {
            match lines.last_mut() {
                Some(line) if long(line) + long(word) + long(" ") <= width as f32 => {
                    line.push(' ');
                    line.push_str(word);
                }
                _ => lines.push(word.to_owned()),
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_sheet_holds_its_rows_and_long_words_break() {
        let picture = RgbImage::from_pixel(64, 64, Rgb([200, 40, 40]));
        let row = vec![
            Cell::Text(200, vec![Words::plain("a red square that is described at some length ".repeat(9))]),
            Cell::Picture(picture, Words::coloured("1.000", GOOD)),
        ];
        let sheet = draw("Title", "subtitle", &["prompt", "picture"], &[row.clone(), row]).unwrap();
        assert_eq!(sheet.height(), HEAD + 26 + 2 * ROW + MARGIN);
        let red = sheet.pixels().filter(|pixel| pixel.0 == [200, 40, 40]).count();
        assert!(red >= 2 * 126 * 126, "{red}");
    }

    #[test]
    fn wide_pictures_keep_their_shape_and_columns_are_as_wide_as_their_widest_cell() {
        let row = |width, height| {
            let picture = RgbImage::from_pixel(width, height, Rgb([200, 40, 40]));
            vec![Cell::Picture(picture, Words::plain("")), Cell::Text(700, vec![])]
        };
        let sheet = draw("", "", &[], &[row(64, 64), row(300, 100), row(32, 64), vec![]]).unwrap();
        assert_eq!(sheet.width(), 2 * MARGIN + 3 * PICTURE + GUTTER + 700);
        let red = sheet.pixels().filter(|pixel| pixel.0 == [200, 40, 40]).count();
        assert_eq!(red, 126 * (126 + 382 + 62), "inside their frames");
    }
}
