//! The oracle: finds out what a picture shows from its pixels alone, and judges captions by it.
//!
//! 1. The background is the most frequent of the three background colours.
//! 2. A pixel is *ink* of colour c if, in RGB space, it lies close to the line from the background to c and nearer to
//!    c: the blurred edge of a shape then counts as part of it and not as another colour.
//! 3. Connected ink is an object; fewer than 10 pixels are ignored.
//! 4. An object has the shape whose outline (sharp or blurred) overlaps it best, or no shape if none overlaps well.
//!
//! Nothing here uses a model or a tokenizer; a caption is used only where it is passed in.

use std::sync::OnceLock;

use image::RgbImage;
use image::imageops::{FilterType, resize};

use crate::render::{ARM, inside};
use crate::scene::{Background, Category, Colour, Relation, SIDE, Scene, Shape, Size};
use crate::text::{Facts, parse_caption};

/// Connected regions of fewer pixels are ignored.
const SPECK: usize = 10;
/// The smallest overlap (intersection over union) with an outline for an object to have its shape.
const OVERLAP: f64 = 0.72;
/// The largest distance in RGB of an ink pixel from the line between background and colour.
const OFF_LINE: f32 = 70.0;
/// Widths and heights in pixels that an object of this world can have.
const EXTENT: std::ops::RangeInclusive<usize> = 5..=17;
/// The strengths of blur with which outlines are compared: standard deviations in pixels.
const BLURS: [f64; 3] = [0.0, 0.7, 1.1];
/// Objects of at least this mean of width and height, in pixels, are large.
const LARGE_FROM: f64 = 11.0;

/// An object that the oracle found in a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct SeenObject {
    /// The colour of at least 65 % of the object's pixels; `None` if no colour has so many.
    pub colour: Option<Colour>,
    /// The object's shape; `None` if no outline overlaps it well.
    pub shape: Option<Shape>,
    /// Small or large, by the mean of width and height.
    pub size: Size,
    /// The mean position of the object's pixels in a 64×64 picture: x to the right, y down.
    pub centre: (f64, f64),
    /// The number of the object's pixels in a 64×64 picture.
    pub area: usize,
    /// The overlap (intersection over union, from 0 to 1) with the outline that fits best.
    pub quality: f64,
}

/// What the oracle found in a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct SeenPicture {
    /// The background colour that is most frequent; `None` if it covers less than a quarter of the picture.
    pub background: Option<Background>,
    /// The objects, ordered by their topmost and then leftmost pixel.
    pub objects: Vec<SeenObject>,
}

/// One statement of a caption and whether a picture shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JudgedFact {
    /// The GenEval category that the statement counts towards.
    pub category: Category,
    /// The statement in English.
    pub claim: String,
    /// Whether the picture shows it.
    pub holds: bool,
}

/// The oracle's judgement of a picture by a caption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// Every statement of the caption, judged.
    pub facts: Vec<JudgedFact>,
    /// Whether every statement holds and the picture has no object that the caption does not mention.
    pub all: bool,
}

impl Judgement {
    /// The share of statements that hold, from 0 to 1; 0 if there is no statement.
    pub fn fact_accuracy(&self) -> f64 {
        self.facts.iter().filter(|fact| fact.holds).count() as f64 / self.facts.len().max(1) as f64
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Ink {
    None,
    Colour(Colour),
    Other,
}

/// Finds the background and the objects of a picture. A picture of another size is scaled to 64×64 first.
pub fn see(picture: &RgbImage) -> SeenPicture {
    let scaled;
    let picture = if picture.dimensions() == (SIDE as u32, SIDE as u32) {
        picture
    } else {
        scaled = resize(picture, SIDE as u32, SIDE as u32, FilterType::Triangle);
        &scaled
    };
    let pixels: Vec<[f32; 3]> = picture.pixels().map(|pixel| pixel.0.map(f32::from)).collect();
    let (background, behind) = find_background(&pixels);
    let ink: Vec<Ink> = pixels.iter().map(|pixel| ink_of(*pixel, behind)).collect();
    let objects = components(&ink).into_iter().filter(|part| part.len() >= SPECK).map(|part| describe(&part, &ink));
    SeenPicture { background, objects: objects.collect() }
}

fn distance(a: [f32; 3], b: [f32; 3]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt()
}

/// The most frequent background colour, and the mean of its pixels; grey where no background covers a quarter.
fn find_background(pixels: &[[f32; 3]]) -> (Option<Background>, [f32; 3]) {
    let near = |background: Background| {
        let rgb = background.rgb().map(f32::from);
        pixels.iter().filter(move |pixel| distance(**pixel, rgb) < 55.0)
    };
    let best = Background::ALL.iter().copied().max_by_key(|background| near(*background).count());
    match best.filter(|background| near(*background).count() * 4 >= pixels.len()) {
        Some(background) => {
            let count = near(background).count() as f32;
            let mut mean = [0f32; 3];
            near(background)
                .for_each(|pixel| mean.iter_mut().zip(pixel).for_each(|(mean, value)| *mean += value / count));
            (Some(background), mean)
        }
        None => (None, Background::Grey.rgb().map(f32::from)),
    }
}

/// What a pixel is, given the colour of the background: background, ink of a colour, or neither.
fn ink_of(pixel: [f32; 3], behind: [f32; 3]) -> Ink {
    let mut best: Option<(f32, f32, Colour)> = None;
    for &colour in Colour::ALL {
        let rgb = colour.rgb().map(f32::from);
        let line = [rgb[0] - behind[0], rgb[1] - behind[1], rgb[2] - behind[2]];
        let from = [pixel[0] - behind[0], pixel[1] - behind[1], pixel[2] - behind[2]];
        let dot = |a: [f32; 3], b: [f32; 3]| a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
        let along = (dot(from, line) / dot(line, line)).clamp(0.0, 1.0);
        let foot = [behind[0] + along * line[0], behind[1] + along * line[1], behind[2] + along * line[2]];
        let off = distance(pixel, foot);
        if best.is_none_or(|(least, _, _)| off < least) {
            best = Some((off, along, colour));
        }
    }
    match best {
        Some((off, along, colour)) if off < OFF_LINE && along >= 0.5 => Ink::Colour(colour),
        Some((off, along, _)) if off < OFF_LINE && along < 0.5 => Ink::None,
        _ if distance(pixel, behind) < OFF_LINE => Ink::None,
        _ => Ink::Other,
    }
}

/// Connected regions of ink; each pixel has four neighbours.
fn components(ink: &[Ink]) -> Vec<Vec<usize>> {
    let mut seen = vec![false; ink.len()];
    let mut parts = Vec::new();
    for start in 0..ink.len() {
        if seen[start] || ink[start] == Ink::None {
            continue;
        }
        seen[start] = true;
        let mut part = vec![start];
        let mut next = 0;
        while next < part.len() {
            let at = part[next];
            next += 1;
            let (x, y) = (at % SIDE, at / SIDE);
            let neighbours = [
                (x > 0).then(|| at - 1),
                (x + 1 < SIDE).then(|| at + 1),
                (y > 0).then(|| at - SIDE),
                (y + 1 < SIDE).then(|| at + SIDE),
            ];
            for neighbour in neighbours.into_iter().flatten() {
                if !seen[neighbour] && ink[neighbour] != Ink::None {
                    seen[neighbour] = true;
                    part.push(neighbour);
                }
            }
        }
        parts.push(part);
    }
    parts
}

fn describe(part: &[usize], ink: &[Ink]) -> SeenObject {
    let xs = part.iter().map(|at| at % SIDE);
    let ys = part.iter().map(|at| at / SIDE);
    let ((left, right), (top, bottom)) = (span(xs.clone()), span(ys.clone()));
    let (width, height) = (right - left + 1, bottom - top + 1);
    let count = part.len() as f64;
    let colour = Colour::ALL
        .iter()
        .copied()
        .map(|colour| (part.iter().filter(|at| ink[**at] == Ink::Colour(colour)).count(), colour))
        .max_by_key(|(pixels, _)| *pixels)
        .filter(|(pixels, _)| *pixels as f64 >= 0.65 * count)
        .map(|(_, colour)| colour);
    let mut mask = vec![false; width * height];
    part.iter().for_each(|at| mask[(at / SIDE - top) * width + at % SIDE - left] = true);
    let best = outlines()
        .iter()
        .map(|outline| (outline.overlap(&mask, width, height), outline.shape))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let (quality, shape) = best.unwrap_or((0.0, Shape::Square));
    let (long, short) = (width.max(height), width.min(height));
    let proportionate = long <= short + short.div_ceil(3) && EXTENT.contains(&long);
    SeenObject {
        colour,
        shape: (quality >= OVERLAP && proportionate).then_some(shape),
        size: if (width + height) as f64 / 2.0 >= LARGE_FROM { Size::Large } else { Size::Small },
        centre: (xs.sum::<usize>() as f64 / count, ys.sum::<usize>() as f64 / count),
        area: part.len(),
        quality,
    }
}

/// A shape in whole pixels, sharp or blurred, cropped to its bounding box.
struct Outline {
    shape: Shape,
    width: usize,
    height: usize,
    mask: Vec<bool>,
}

impl Outline {
    /// The pixels of a shape that keep at least half of their ink after a Gaussian blur.
    fn new(shape: Shape, size: Size, blur: f64) -> Self {
        const CANVAS: usize = 24;
        const SAMPLES: usize = 4;
        let radius = size.pixels() as f64 / 2.0;
        let middle = CANVAS as f64 / 2.0;
        let ink = |x: usize, y: usize| {
            let at = |v: usize, sub: usize| (v as f64 + (sub as f64 + 0.5) / SAMPLES as f64 - middle) / radius;
            let hits = (0..SAMPLES * SAMPLES)
                .filter(|sample| inside(shape, ARM, at(x, sample % SAMPLES), at(y, sample / SAMPLES)))
                .count();
            hits as f64 / (SAMPLES * SAMPLES) as f64
        };
        let sharp: Vec<f64> = (0..CANVAS * CANVAS).map(|at| ink(at % CANVAS, at / CANVAS)).collect();
        let weight = |distance: i64| {
            if blur == 0.0 {
                f64::from(u8::from(distance == 0))
            } else {
                (-(distance * distance) as f64 / (2.0 * blur * blur)).exp()
            }
        };
        let total: f64 = (-4..=4).map(weight).sum();
        let smooth = |values: &[f64], step: usize, position: &dyn Fn(usize) -> usize| -> Vec<f64> {
            (0..values.len())
                .map(|at| {
                    let shifted = |d: i64| {
                        let to = position(at) as i64 + d;
                        (0..CANVAS as i64).contains(&to).then(|| values[(at as i64 + d * step as i64) as usize])
                    };
                    (-4..=4).map(|d| weight(d) * shifted(d).unwrap_or(0.0)).sum::<f64>() / total
                })
                .collect()
        };
        let blurred = smooth(&smooth(&sharp, 1, &|at| at % CANVAS), CANVAS, &|at| at / CANVAS);
        let inked: Vec<usize> = (0..blurred.len()).filter(|at| blurred[*at] >= 0.5).collect();
        let (left, right) = span(inked.iter().map(|at| at % CANVAS));
        let (top, bottom) = span(inked.iter().map(|at| at / CANVAS));
        let (width, height) = (right - left + 1, bottom - top + 1);
        let mut mask = vec![false; width * height];
        inked.iter().for_each(|at| mask[(at / CANVAS - top) * width + at % CANVAS - left] = true);
        Self { shape, width, height, mask }
    }

    /// Intersection over union with another mask, after stretching the outline to that mask's width and height.
    fn overlap(&self, mask: &[bool], width: usize, height: usize) -> f64 {
        let (mut both, mut either) = (0usize, 0usize);
        for (at, &there) in mask.iter().enumerate() {
            let x = (2 * (at % width) + 1) * self.width / (2 * width);
            let y = (2 * (at / width) + 1) * self.height / (2 * height);
            let drawn = self.mask[y * self.width + x];
            both += usize::from(there && drawn);
            either += usize::from(there || drawn);
        }
        both as f64 / either.max(1) as f64
    }
}

/// The smallest and the largest of some numbers; 0 and 0 of none.
fn span(values: impl Iterator<Item = usize> + Clone) -> (usize, usize) {
    (values.clone().min().unwrap_or(0), values.max().unwrap_or(0))
}

/// The outlines of all shapes at all sizes and blurs, computed once.
fn outlines() -> &'static [Outline] {
    static OUTLINES: OnceLock<Vec<Outline>> = OnceLock::new();
    OUTLINES.get_or_init(|| {
        let sized = |shape| Size::ALL.iter().flat_map(move |&size| BLURS.map(|blur| Outline::new(shape, size, blur)));
        Shape::ALL.iter().flat_map(|&shape| sized(shape)).collect()
    })
}

/// Judges a picture by the statements of a caption.
///
/// The statements, and the GenEval category that each counts towards:
/// - for every group of one object: an object of its shape is there (*single object* if the caption has one group, else
///   *two objects*);
/// - for every group: the picture has exactly the stated number of objects of its shape and colour (*counting*);
/// - the colour, if stated: an object of that shape has it (*colors* if the caption has one group, else *attribute
///   binding*);
/// - the size, if stated: the objects of that shape and colour have it (*attribute binding*);
/// - the relation, if stated: the centres of two such objects lie that way, farther along that axis than across it
///   (*position*);
/// - the background, if stated (*colors*);
/// - nothing else is there, fragments included (*counting*), because captions of this world mention every object.
pub fn judge(picture: &RgbImage, facts: &Facts) -> Judgement {
    let seen = see(picture);
    let single = facts.groups.len() == 1;
    let matching = |group: &crate::text::Claim| -> Vec<&SeenObject> {
        let fits = |object: &&SeenObject| {
            object.shape == Some(group.shape) && group.colour.is_none_or(|colour| object.colour == Some(colour))
        };
        seen.objects.iter().filter(fits).collect()
    };
    let mut judged = Vec::new();
    let mut add = |category, claim: String, holds| judged.push(JudgedFact { category, claim, holds });
    for group in &facts.groups {
        let found = matching(group);
        let category = if single { Category::SingleObject } else { Category::TwoObjects };
        if group.count == 1 {
            let there = seen.objects.iter().any(|object| object.shape == Some(group.shape));
            add(category, format!("a {} is there", group.shape.word()), there);
        }
        add(Category::Counting, format!("exactly {group}"), found.len() == group.count);
        if let Some(colour) = group.colour {
            let category = if single { Category::Colors } else { Category::AttributeBinding };
            add(category, format!("a {} is {}", group.shape.word(), colour.word()), !found.is_empty());
        }
        if let Some(size) = group.size {
            let holds = !found.is_empty() && found.iter().all(|object| object.size == size);
            add(Category::AttributeBinding, format!("{group} is {}", size.word()), holds);
        }
    }
    if let (Some(relation), [first, second]) = (facts.relation, facts.groups.as_slice()) {
        let (firsts, seconds) = (matching(first), matching(second));
        let holds = firsts.iter().any(|a| seconds.iter().any(|b| a != b && related(a, b, relation)));
        add(Category::Position, format!("{first} {} {second}", relation.word()), holds);
    }
    if let Some(background) = facts.background {
        add(Category::Colors, format!("the background is {}", background.word()), seen.background == Some(background));
    }
    let mentioned: usize = facts.groups.iter().map(|group| group.count).sum();
    judged.push(JudgedFact {
        category: Category::Counting,
        claim: "nothing else is there".to_string(),
        holds: seen.objects.len() <= mentioned,
    });
    let all = judged.iter().all(|fact| fact.holds);
    Judgement { facts: judged, all }
}

fn related(first: &SeenObject, second: &SeenObject, relation: Relation) -> bool {
    let (dx, dy) = (first.centre.0 - second.centre.0, first.centre.1 - second.centre.1);
    match relation {
        Relation::Left => -dx > dy.abs(),
        Relation::Right => dx > dy.abs(),
        Relation::Above => -dy > dx.abs(),
        Relation::Below => dy > dx.abs(),
    }
}

/// How much of a caption is true of a scene, and how much of the scene it mentions, as `(right, total)`.
///
/// The statements counted are: each group's colour and shape, its number, its size if stated, and the relation and the
/// background if stated. Each group of the scene that the caption leaves out counts as one wrong statement. A caption
/// that names no shape gets 0 of two per group.
pub fn caption_facts_score(scene: &Scene, caption: &str) -> (usize, usize) {
    let Some(facts) = parse_caption(caption) else { return (0, 2 * scene.groups.len()) };
    let truth = scene.facts();
    let same = |a: &crate::text::Claim, b: &crate::text::Claim| {
        a.shape == b.shape && a.colour.is_none_or(|colour| Some(colour) == b.colour)
    };
    let mut statements = Vec::new();
    for claim in &facts.groups {
        let there = truth.groups.iter().find(|group| same(claim, group));
        statements.push(there.is_some());
        statements.push(there.is_some_and(|group| group.count == claim.count));
        if let Some(size) = claim.size {
            statements.push(there.is_some_and(|group| group.size == Some(size)));
        }
    }
    if let (Some(relation), [first, second]) = (facts.relation, facts.groups.as_slice()) {
        let places = |claim: &crate::text::Claim| -> Vec<(usize, usize)> {
            let fits = |o: &&crate::scene::Object| claim.shape == o.shape && claim.colour.is_none_or(|c| c == o.colour);
            scene.objects.iter().filter(fits).map(|object| (object.row, object.column)).collect()
        };
        let lies = |a: (usize, usize), b: (usize, usize)| match relation {
            Relation::Left => a.1 < b.1,
            Relation::Right => a.1 > b.1,
            Relation::Above => a.0 < b.0,
            Relation::Below => a.0 > b.0,
        };
        let (firsts, seconds) = (places(first), places(second));
        statements.push(firsts.iter().any(|a| seconds.iter().any(|b| lies(*a, *b))));
    }
    if let Some(background) = facts.background {
        statements.push(background == scene.background);
    }
    let left_out = truth.groups.iter().filter(|group| !facts.groups.iter().any(|claim| same(claim, group))).count();
    (statements.iter().filter(|right| **right).count(), statements.len() + left_out)
}
