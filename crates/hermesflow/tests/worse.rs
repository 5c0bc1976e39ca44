//! `train.preview.judge`: the pictures of a training are judged as it goes on.

#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;

mod workshop;

use workshop::{Workshop, text};

#[test]
fn pictures_that_get_worse_are_said() {
    let workshop = Workshop::new();
    for stage in ["scenes", "caption", "imagine", "ask", "answer", "pair"] {
        workshop.succeeds(&[stage, "run.yaml"]);
    }
    // Questions are those of records with the prompt as their caption.
    let records = fs::read_to_string(workshop.path("data/initial_data.json")).unwrap();
    let records: Vec<serde_json::Value> = serde_json::from_str(&records).unwrap();
    let caption = |id: &str| {
        let of = records.iter().find(|one| one["id"] == id).unwrap();
        of["caption"].as_str().unwrap().to_owned()
    };
    let prompts = ["train-000000", "train-000001", "train-000002"].map(caption);
    assert!(prompts[0] != prompts[1] && prompts[1] != prompts[2], "{prompts:?}");
    let preview = format!(
        "train.preview={{ prompts: ['{}', '{}', '{}', nobody asks about this], images: 2, guidances: [1], judge: true }}",
        prompts[0], prompts[1], prompts[2]
    );
    let train = ["train", "run.yaml", &preview];
    let output = workshop.hermesflow(&train);
    assert!(output.status.success(), "{}", text(&output.stderr));

    let verdicts = |step: &str| workshop.path(&format!("out/train/preview/{step}/verdicts.json"));
    let read = |step: &str| -> serde_json::Value {
        serde_json::from_str(&fs::read_to_string(verdicts(step)).unwrap()).unwrap()
    };
    let (before, after) = (read("step-000000"), read("step-000012"));
    for found in [&before, &after] {
        let scores = found["scores"].as_array().unwrap();
        assert_eq!((scores.len(), scores[0].as_array().unwrap().len()), (1, 3), "one guidance, three prompts: {found}");
        assert!(scores[0].as_array().unwrap().iter().all(|one| (0.0..1.0).contains(&one.as_f64().unwrap())), "{found}");
    }
    assert_eq!(before["questions"], after["questions"]);

    // The same training again, over pictures of before that were judged as better than they are.
    let again = |scores: f64| {
        for name in fs::read_dir(workshop.path("out/train")).unwrap() {
            let path = name.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if name == "model" || name.starts_with("checkpoint-") {
                fs::remove_dir_all(path).unwrap();
            } else if name.starts_with("metrics") {
                fs::remove_file(path).unwrap();
            }
        }
        let mut edited = before.clone();
        edited["scores"] = serde_json::json!([[scores, scores - 0.01, scores + 0.01]]);
        fs::write(verdicts("step-000000"), edited.to_string()).unwrap();
        let output = workshop.hermesflow(&train);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stderr)
    };
    let said = again(0.98);
    let warning =
        "WARNING: train: after step 12, the pictures of 3 prompts drawn under guidance 1 are worse than before";
    assert!(said.contains(warning), "{said}");
    assert_eq!(read("step-000012"), after, "what was judged is not judged again");
    assert!(!again(0.0).contains("are worse than before"));

    let preview = "train.preview={ prompts: [nobody asks about this], judge: true }";
    let message = workshop.fails(&["train", "run.yaml", preview, "output=other"]);
    assert!(message.contains("train.preview.judge") && message.contains("no question"), "{message}");
}
