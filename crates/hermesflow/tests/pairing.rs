//! Pairs are made of the captions and answers of their own records, in whatever order these stand.

#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;

mod workshop;

use serde_json::{Value, json};
use workshop::Workshop;

#[test]
fn each_record_competes_with_its_own_captions_images_and_true_caption() {
    let workshop = Workshop::new();
    let truth = |id: &str| match id {
        "a" => "two dogs on a green field",
        "b" => "a red car beside a house",
        _ => "three small boats at sea",
    };
    // The text that an image was made from is no measure of captions about it: it says what the worse caption says.
    let worse = |id: &str| format!("the wrong picture of {id}");
    let record = |id: &&str| json!({ "id": id, "img_path": format!("images/{id}.png"), "prompt": worse(id), "caption": truth(id) });
    let ids = ["a", "b", "c"];
    let records: Vec<Value> = ids.iter().map(record).collect();
    let captions = |id: &&str| {
        let mut captions = record(id);
        captions["caption_mmu"] = json!([worse(id), format!("perhaps {}", truth(id)), truth(id), truth(id)]);
        captions
    };
    let answer = |(id, result): (&str, [f64; 4])| json!({ "id": id, "caption": truth(id), "question_number": 3, "result": result });
    // As the released scripts write them: in another order, and one record is not there.
    let captions: Vec<Value> = ["c", "a", "b"].iter().map(captions).collect();
    let answers: Vec<Value> =
        [("b", [0.333, 1.0, 0.0, 1.0]), ("a", [0.667, 0.333, 1.0, 0.333])].into_iter().map(answer).collect();
    for (file, content) in [
        ("initial_data.json", records),
        ("understanding_caption_results.json", captions),
        ("generation_vqa_results.json", answers),
    ] {
        workshop.write(&format!("data/{file}"), &Value::from(content).to_string());
    }
    workshop.succeeds(&["pair", "run.yaml", "data.scenes=null", "data.fresh=false", "pair.min_accuracy=0.6"]);
    let pairs: Value = serde_json::from_slice(&fs::read(workshop.path("data/pair_dpo_data.json")).unwrap()).unwrap();
    let expected = [("a", 2, 1), ("b", 1, 2)];
    assert_eq!(pairs.as_array().unwrap().len(), expected.len(), "{pairs}");
    for (pair, (id, win, lose)) in pairs.as_array().unwrap().iter().zip(expected) {
        assert_eq!(pair["id"], id);
        assert_eq!(pair["caption"], truth(id));
        assert_eq!((&pair["caption_win"], &pair["caption_lose"]), (&json!(truth(id)), &json!(worse(id))));
        let image = |number: usize| json!(format!("generated_images/{id}/{number}.png"));
        assert_eq!((&pair["image_win"], &pair["image_lose"]), (&image(win), &image(lose)));
        assert!(pair["bert_score_win"].as_f64() > pair["bert_score_lose"].as_f64());
    }
}
