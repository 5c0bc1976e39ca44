//! The world and its oracle: splits, round trips, and what the oracle accepts and refuses.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::HashSet;

use hermesflow_scenes::oracle::{caption_facts_score, judge, see};
use hermesflow_scenes::{
    Category, QuestionKind, Scene, SceneKind, Split, parse_caption, picture_questions, questions, scene,
};
use image::{Rgb, RgbImage};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn scenes(count: u64) -> impl Iterator<Item = Scene> {
    (0..count).map(|index| scene(if index % 2 == 0 { Split::Train } else { Split::HeldOut }, 7, index))
}

/// The share of facts, and of whole scenes, that the oracle finds after `change`.
fn accepted(count: u64, mut change: impl FnMut(RgbImage, &mut ChaCha8Rng) -> RgbImage) -> (f64, f64) {
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let (mut facts, mut whole) = (0.0, 0.0);
    for scene in scenes(count) {
        let judgement = judge(&change(scene.render(), &mut random), &scene.facts());
        facts += judgement.fact_accuracy() / count as f64;
        whole += f64::from(u8::from(judgement.all)) / count as f64;
    }
    (facts, whole)
}

fn blur(image: &RgbImage) -> RgbImage {
    let (w, h) = image.dimensions();
    RgbImage::from_fn(w, h, |x, y| {
        let mut sum = [0u32; 3];
        for (dx, dy) in (0..9).map(|k| (k % 3, k / 3)) {
            let at = |v: u32, d: u32, end: u32| (v + d).saturating_sub(1).min(end - 1);
            let pixel = image.get_pixel(at(x, dx, w), at(y, dy, h));
            (0..3).for_each(|c| sum[c] += u32::from(pixel[c]));
        }
        Rgb(sum.map(|s| (s / 9) as u8))
    })
}

fn shift_levels(image: &RgbImage, by: [i16; 3]) -> RgbImage {
    let mut image = image.clone();
    for pixel in image.pixels_mut() {
        for (value, by) in pixel.0.iter_mut().zip(by) {
            *value = (i16::from(*value) + by).clamp(0, 255) as u8;
        }
    }
    image
}

#[test]
fn combinations_of_the_splits_never_meet() {
    let keys = |split| (0..8000).map(|i| scene(split, 1, i).combination()).collect::<HashSet<_>>();
    let (train, dev, held) = (keys(Split::Train), keys(Split::Dev), keys(Split::HeldOut));
    assert!(train.is_disjoint(&held) && train.is_disjoint(&dev) && dev.is_disjoint(&held));
    for split in [Split::Train, Split::Dev, Split::HeldOut] {
        for kind in [SceneKind::Single, SceneKind::Relation, SceneKind::Counting, SceneKind::Binding, SceneKind::Mixed]
        {
            assert!((0..500).any(|i| scene(split, 1, i).kind == kind), "{split:?} has no {kind:?}");
        }
    }
}

#[test]
fn a_scene_is_a_function_of_its_number() {
    assert_eq!(scene(Split::Dev, 4, 77), scene(Split::Dev, 4, 77));
    assert_ne!(scene(Split::Dev, 4, 77), scene(Split::Dev, 4, 78));
    assert_ne!(scene(Split::Dev, 4, 77), scene(Split::Dev, 5, 77));
}

#[test]
fn captions_say_what_is_true_and_are_read_back() {
    let mut different = HashSet::new();
    for (index, scene) in scenes(3000).enumerate() {
        let caption = scene.caption(index as u64);
        let facts = parse_caption(&caption).unwrap();
        assert_eq!(facts.groups.len(), scene.groups.len(), "{caption}");
        let (right, total) = caption_facts_score(&scene, &caption);
        assert_eq!(right, total, "{caption}");
        assert!(judge(&scene.render(), &facts).all, "{caption}");
        different.insert(caption);
    }
    assert!(different.len() > 2000);
    assert_eq!(parse_caption("nothing of the kind"), None);
}

#[test]
fn a_wrong_caption_scores_less() {
    let scene = scenes(40).find(|scene| scene.kind == SceneKind::Relation).unwrap();
    let caption = scene.caption(1);
    let word = scene.groups[0].colour.word();
    let wrong = caption.replace(word, if word == "red" { "blue" } else { "red" });
    let (right, total) = caption_facts_score(&scene, &wrong);
    assert!(right < total, "{wrong}");
    assert_eq!(caption_facts_score(&scene, "").0, 0);
}

#[test]
fn questions_have_their_answer_among_their_choices_once() {
    let (mut yes, mut no) = (0, 0);
    for (index, scene) in scenes(2000).enumerate() {
        let asked = questions(&scene.facts(), index as u64);
        assert!((3..=14).contains(&asked.len()), "{}", asked.len());
        for question in asked {
            assert_eq!(question.choices.iter().filter(|choice| **choice == question.answer).count(), 1);
            assert_eq!(question.choices.iter().collect::<HashSet<_>>().len(), question.choices.len());
            yes += usize::from(question.answer == "yes");
            no += usize::from(question.answer == "no");
        }
    }
    assert!((0.4..0.6).contains(&(f64::from(yes as u32) / f64::from((yes + no) as u32))), "{yes} yes, {no} no");
}

#[test]
fn the_oracle_finds_clean_scenes() {
    let (facts, whole) = accepted(2000, |image, _| image);
    assert!(facts > 0.995 && whole > 0.99, "{facts} {whole}");
}

#[test]
fn the_oracle_bears_noise_blur_shift_and_coarse_levels() {
    let noisy = accepted(400, |mut image, random| {
        for value in image.iter_mut() {
            let noise: f32 = (0..12).map(|_| random.random::<f32>()).sum::<f32>() - 6.0;
            *value = (f32::from(*value) + 12.0 * noise).clamp(0.0, 255.0) as u8;
        }
        image
    });
    let blurred = accepted(400, |image, _| blur(&image));
    let shifted =
        accepted(400, |image, _| RgbImage::from_fn(64, 64, |x, y| *image.get_pixel((x + 1).min(63), (y + 1).min(63))));
    let coarse = accepted(400, |mut image, _| {
        image.iter_mut().for_each(|value| *value = (*value / 24) * 24 + 12);
        image
    });
    let tinted = accepted(400, |image, _| shift_levels(&blur(&image), [20, -20, 15]));
    for (name, (facts, _)) in
        [("noise", noisy), ("blur", blurred), ("shift", shifted), ("coarse", coarse), ("tint", tinted)]
    {
        assert!(facts > 0.97, "{name}: {facts}");
    }
}

#[test]
fn the_oracle_refuses_broken_pictures() {
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let noise = accepted(200, |image, random| {
        RgbImage::from_fn(64, 64, |_, _| {
            let _ = &image;
            Rgb([random.random(), random.random(), random.random()])
        })
    });
    let halved = accepted(200, |mut image, _| {
        let behind = *image.get_pixel(0, 0);
        for y in 0..64 {
            for x in 0..64 {
                if x % 16 < 8 {
                    image.put_pixel(x, y, behind);
                }
            }
        }
        image
    });
    let swapped = accepted(200, |mut image, _| {
        image.pixels_mut().for_each(|pixel| pixel.0.rotate_left(1));
        image
    });
    assert!(noise.1 == 0.0 && halved.1 < 0.05 && swapped.1 < 0.1, "{noise:?} {halved:?} {swapped:?}");
    let blobs =
        RgbImage::from_fn(64, 64, |_, _| if random.random_bool(0.5) { Rgb([220, 40, 40]) } else { Rgb([245; 3]) });
    assert!(see(&blobs).objects.iter().all(|object| object.shape.is_none()));
}

#[test]
fn every_category_is_judged() {
    let categories: HashSet<Category> =
        scenes(200).flat_map(|scene| judge(&scene.render(), &scene.facts()).facts).map(|fact| fact.category).collect();
    assert_eq!(categories.len(), Category::ALL.len());
}

/// A caption of this world names every thing, so what it does not name is a fault of the picture.
#[test]
fn clutter_is_wrong() {
    let mut seen = 0;
    for scene in scenes(200).filter(|scene| scene.facts().groups.len() == 2) {
        let mut facts = scene.facts();
        facts.groups.pop();
        facts.relation = None;
        let judgement = judge(&scene.render(), &facts);
        let wrong: Vec<&str> =
            judgement.facts.iter().filter(|fact| !fact.holds).map(|fact| fact.claim.as_str()).collect();
        assert_eq!(wrong, ["nothing else is there"], "{facts:?}");
        assert!(!judgement.all);
        seen += 1;
    }
    assert!(seen > 50);
    for scene in scenes(200).filter(|scene| scene.facts().groups.iter().any(|group| group.count > 1)) {
        let mut facts = scene.facts();
        facts.groups.iter_mut().for_each(|group| group.count = 1);
        let judgement = judge(&scene.render(), &facts);
        assert!(judgement.facts.iter().any(|fact| !fact.holds && fact.claim.starts_with("exactly")), "{facts:?}");
    }
}

#[test]
fn pictures_are_asked_for_every_number() {
    for scene in scenes(100) {
        let facts = scene.facts();
        let (asked, of_pictures) = (questions(&facts, 1), picture_questions(&facts, 1));
        assert_eq!(of_pictures[..asked.len()], asked[..]);
        let counts = of_pictures.iter().filter(|question| question.kind == QuestionKind::Counting).count();
        assert_eq!(counts, facts.groups.len() + 1, "each thing, and all of them");
        assert!(of_pictures.iter().all(|question| question.choices.contains(&question.answer)));
    }
}

#[test]
fn alt_text_is_a_caption_of_this_world_that_is_often_wrong() {
    let wrong = |caption: String, scene: &Scene| !judge(&scene.render(), &parse_caption(&caption).unwrap()).all;
    assert!(scenes(400).filter(|scene| wrong(scene.caption(7), scene)).count() < 4);
    let hurried = scenes(400).filter(|scene| wrong(scene.alt_text(7), scene)).count();
    assert!((300..400).contains(&hurried), "{hurried} of 400");
}

#[test]
fn a_short_caption_is_true_and_tells_of_one_group() {
    for scene in scenes(200) {
        let (short, full) = (parse_caption(&scene.short_caption(7)).unwrap(), scene.facts());
        assert_eq!(short.groups.len(), 1);
        let said = &short.groups[0];
        assert!(
            full.groups
                .iter()
                .any(|group| (group.count, group.colour, group.shape) == (said.count, said.colour, said.shape))
        );
        assert_eq!(short.relation, None);
    }
}
