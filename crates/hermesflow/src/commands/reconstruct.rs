//! `hermesflow reconstruct`: pictures through the image tokenizer and back.

use std::path::PathBuf;

use anyhow::Result;
use hermesflow_models::preprocess::load_square;
use image::RgbImage;

use super::args::ConfigArgs;
use crate::files::OwnFiles;
use crate::models;
use crate::progress::Progress;
use crate::report::sheet::{Cell, Words, draw};
use crate::report::table;
use crate::run::pictures::{self, png};

/// Pictures on one contact sheet.
const ROWS: usize = 50;

/// Show how much of your pictures the image tokenizer preserves
///
/// Encodes every picture into image tokens and decodes these again: the best that the model could ever imagine. A
/// picture may have any format and shape: the short side is fitted to the model's resolution and the middle cut out.
/// Of a model whose image tokenizer is a checkpoint of its own only that one is loaded. Writes the decoded pictures and a sheet (before, after), and prints the peak
/// signal-to-noise ratio of each against the fitted picture, in decibels: more is nearer.
///
/// Example: hermesflow reconstruct scenes --image photo.jpg --image drawing.png
///
/// Example: hermesflow reconstruct run.yaml --image pictures/ --out reconstructed
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,

    /// A picture, or a folder of pictures; repeat it for several
    #[arg(long = "image", value_name = "PATH", required = true)]
    images: Vec<PathBuf>,

    /// The folder of the results; `reconstruct` in the run's `output` if not given
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let config = args.config.load()?;
    let files = pictures::named(&args.images)?;
    let tokenizer = models::image_tokenizer(&config.model, &Progress::stderr())?;
    let side = tokenizer.side();
    let mut own = OwnFiles::of(&args.out.unwrap_or_else(|| config.output.join("reconstruct")))?;
    let mut figures = table(&["picture", "PSNR (dB)", "reconstructed"]);
    let mut rows = Vec::new();
    for (first, chunk) in (0..).step_by(config.data.chunk).zip(files.chunks(config.data.chunk)) {
        let before = chunk.iter().map(|file| Ok(load_square(file, side)?)).collect::<Result<Vec<_>>>()?;
        let after = tokenizer.reconstruct(&before)?;
        for (number, ((file, before), after)) in (first..).zip(chunk.iter().zip(before).zip(after)) {
            let ratio = format!("{:.2}", psnr(&before, &after));
            let stem = file.file_stem().unwrap_or_default().to_string_lossy();
            let path = own.write(&format!("{number:03}-{stem}.png"), &png(&after)?)?;
            figures.add_row([file.display().to_string(), ratio.clone(), path.display().to_string()]);
            if rows.len() < ROWS {
                rows.push(vec![
                    Cell::Text(260, vec![Words::plain(file.display().to_string())]),
                    Cell::Picture(before, Words::plain("before")),
                    Cell::Picture(after, Words::plain(format!("{ratio} dB"))),
                ]);
            }
        }
    }
    let subtitle = format!("{} of {} pictures, each as image tokens and back", rows.len(), files.len());
    let sheet = draw("Reconstructed", &subtitle, &["picture", "before", "after"], &rows)?;
    let file = own.write("sheet.png", &png(&sheet)?)?;
    say!("{figures}\n{}", file.display())?;
    Ok(())
}

/// The peak signal-to-noise ratio of two pictures of one size, in decibels; infinite if they are equal.
fn psnr(a: &RgbImage, b: &RgbImage) -> f64 {
    let squares = a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
    let mean = squares.sum::<f64>() / a.as_raw().len().max(1) as f64;
    10.0 * (255.0 * 255.0 / mean).log10()
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    #[test]
    fn ratios_by_hand() {
        let plain = |level| RgbImage::from_pixel(4, 4, Rgb([level; 3]));
        assert!((psnr(&plain(100), &plain(110)) - 28.130_803_6).abs() < 1e-6, "20·log10(255 / 10)");
        assert!((psnr(&plain(0), &plain(255))).abs() < 1e-9);
        assert!(psnr(&plain(7), &plain(7)).is_infinite());
    }
}
