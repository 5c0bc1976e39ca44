#![allow(clippy::unwrap_used)]
use super::choices::meant;
use super::*;

fn records() -> Vec<InitialRecord> {
    let record = |id: &str, image: &str, caption: &str| InitialRecord {
        id: crate::RecordId::new(id).unwrap(),
        img_path: image.into(),
        prompt: "p".into(),
        caption: caption.into(),
    };
    vec![
        record("coco_1", "images/aa-1.jpg", "A red car."),
        record("two", "images/bb-2.png", "A cat on a mat."),
        record("three", "images/cc-3.png", "Two dogs."),
    ]
}

/// The questions that a file gives about the records, in their order, and what was found in it.
fn given(text: &str) -> Result<(Vec<QuestionRecord>, QuestionCounts)> {
    let folder = tempfile::tempdir().unwrap();
    let [path, data] = ["questions.json", "initial_data.json"].map(|name| folder.path().join(name));
    std::fs::write(&path, text).unwrap();
    std::fs::write(&data, serde_json::to_string(&records()).unwrap()).unwrap();
    let given = QuestionFile::open(&path, &Table::unique(&data, "").unwrap(), "make it")?;
    let of = |(number, record)| given.questions(number, record).unwrap();
    Ok((records().iter().enumerate().flat_map(of).collect(), given.found()))
}

/// Record, question, answer.
fn shown(questions: &[QuestionRecord]) -> Vec<(&str, &str, &str)> {
    questions.iter().map(|one| (one.id.as_str(), one.question.as_str(), one.answer.as_str())).collect()
}

#[test]
fn our_own_form_is_joined_by_id() {
    let one = |id: &str, answer: &str| {
        format!(
            "{{\"id\": \"{id}\", \"img_path\": \"i\", \"prompt\": \"p\", \"caption\": \"c\", \"element\": \"e\",\n \
             \"question\": \"q {answer}?\", \"choices\": [\"yes\", \"no\"], \"answer\": \"{answer}\"}}"
        )
    };
    let text = format!(
        "{},\n{},\n{},\n{},",
        one("two", "no"),
        one("nobody", "no"),
        one("coco_1", "perhaps"),
        one("coco_1", "yes")
    );
    for text in [text.clone(), format!("[{text}]"), text.replace("\n \"", " \"").replace("},", "}")] {
        let (questions, found) = given(&text).unwrap();
        assert_eq!(found.form, Some(QuestionForm::Ours));
        assert_eq!(shown(&questions), [("coco_1", "q yes?", "yes"), ("two", "q no?", "no")], "in the records' order");
        assert_eq!((found.elsewhere, found.unanswered, found.incomplete), (1, 1, 0));
        assert_eq!(questions[0].caption, "c", "as it was given");
    }
}

#[test]
fn tifas_benchmark_is_joined_by_id_or_caption() {
    let text = r#"[
        {"id": "coco_1", "caption": "other", "element": "car", "question": "what color is the car?",
         "choices": ["red", "blue"], "answer": "red", "element_type": "color", "coco_val_id": "7"},
        {"id": "drawbench_9", "caption": "Two dogs. ", "element": "2", "question": "how many dogs?",
         "choices": ["1", "2"], "answer": "2", "element_type": "counting"},
        {"id": "x", "caption": "nothing", "element": "2", "question": "q?", "choices": ["1", "2"], "answer": "2"},
        {"id": "coco_1", "caption": "", "element": "car", "question": "b?", "choices": ["red", "blue"], "answer": "B"},
        {"id": "coco_1", "caption": "", "element": "car", "question": "b?", "choices": ["red", "red"], "answer": "red"}]"#;
    let (questions, found) = given(text).unwrap();
    assert_eq!(found.form, Some(QuestionForm::Tifa));
    let expected =
        [("coco_1", "what color is the car?", "red"), ("coco_1", "b?", "blue"), ("three", "how many dogs?", "2")];
    assert_eq!(shown(&questions), expected);
    assert_eq!((found.elsewhere, found.unanswered, found.incomplete, found.few), (1, 0, 0, 1));
    let first = &questions[0];
    assert_eq!((first.caption.as_str(), first.element.as_str()), ("A red car.", "car"), "the record's own caption");
}

#[test]
fn journeydbs_annotation_is_joined_by_image_or_caption() {
    let of = |path: &str, caption: &str, entries: &str| {
        format!(
            r#"{{"img_path": "{path}", "prompt": "p", "Task1": {{}}, "Task2": {{"Caption": "{caption}"}}, "Task3":
            {{"Style Relevant Questions and Answers": [], "Content Relevant Questions and Answers": [{entries}]}}}}"#
        )
        .replace('\n', " ")
    };
    let lettered = r#"{"Question": "What color?", "Options": {"A": "red", "B": "blue"}, "Answer": "A"}"#;
    let listed = r#"{"Question": "Where?", "Options": ["A. mat", "B. roof"], "Answer": "b. roof"}"#;
    let bad = r#"{"Question": "Who?"}, {"Question": "Why?", "Options": {"A": "x", "B": "y"}, "Answer": "D"}"#;
    let lines = [
        of("./000/aa-1.jpg", "", lettered),
        of("images/bb-2.png", "", listed),
        of("999.jpg", "Two dogs.", bad),
        of("./1/zz.jpg", "nothing", lettered),
    ];
    let (questions, found) = given(&lines.join("\n")).unwrap();
    assert_eq!(found.form, Some(QuestionForm::JourneyDb));
    assert_eq!(shown(&questions), [("coco_1", "What color?", "red"), ("two", "Where?", "roof")]);
    assert_eq!(questions[1].choices, ["mat", "roof"]);
    assert_eq!(questions[0].element, "content");
    assert_eq!((found.elsewhere, found.unanswered, found.incomplete), (1, 1, 1));
}

#[test]
fn entries_of_a_record_are_found_wherever_they_stand() {
    let one = |id: &str, caption: &str, number: usize| {
        format!(
            "{{\"id\": \"{id}\", \"caption\": \"{caption}\", \"question\": \"q{number}?\", \"choices\": [\"yes\", \"no\"], \
             \"answer\": \"yes\"}}"
        )
    };
    // Runs of one record, cut by another, by one of nobody, and by one of several records.
    let entries = [
        ("three", ""),
        ("coco_1", ""),
        ("coco_1", ""),
        ("x", "nothing"),
        ("coco_1", ""),
        ("two", ""),
        ("x", "Two dogs."),
        ("coco_1", ""),
    ];
    let lines: Vec<String> = entries.iter().enumerate().map(|(at, (id, caption))| one(id, caption, at)).collect();
    for text in [lines.join("\n"), format!("[{}]", lines.join(",\n"))] {
        let (questions, found) = given(&text).unwrap();
        let asked: Vec<(&str, &str)> = shown(&questions).into_iter().map(|(id, question, _)| (id, question)).collect();
        let first = ["q1?", "q2?", "q4?", "q7?"].map(|question| ("coco_1", question));
        assert_eq!(asked, [&first[..], &[("two", "q5?"), ("three", "q0?"), ("three", "q6?")]].concat());
        assert_eq!(found.elsewhere, 1);
    }
}

#[test]
fn answers_in_letters_mean_their_choices() {
    let options = |letters: bool| -> Vec<(Option<String>, String)> {
        let name = |letter: &str| letters.then(|| letter.to_string());
        vec![(name("A"), "red".into()), (name("B"), "blue".into())]
    };
    for (answer, expected) in [
        ("B", Some("blue")),
        ("b", Some("blue")),
        ("(A)", Some("red")),
        ("B.", Some("blue")),
        ("B. blue", Some("blue")),
        ("B. red", None),
        ("Blue", Some("blue")),
        ("C", None),
        ("green", None),
        ("", None),
    ] {
        for letters in [true, false] {
            assert_eq!(meant(&options(letters), answer).as_deref(), expected, "{answer} {letters}");
        }
    }
}

#[test]
fn what_is_broken_is_named() {
    for (text, parts) in [
        ("{\"id\": \"9\", \"q\": 1}", vec!["line 1", "record 9", "TIFA", "JourneyDB", "vqa_data.json"]),
        ("[{\"id\": 1, \"question\"", vec!["questions.json", "cut off"]),
        (
            "{\"question\": \"q\", \"choices\": [], \"answer\": \"a\"}\n{\"id\": \"b\"}",
            vec!["line 2", "record b", "choices"],
        ),
        ("{\"img_path\": \"x.jpg\", \"Task3\": {}}\n{\"img_path\": \"y.jpg\"}", vec!["line 2", "y.jpg", "Task3"]),
    ] {
        let message = given(text).unwrap_err().to_string();
        parts.iter().for_each(|part| assert!(message.contains(part), "{part}: {message}"));
    }
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("initial_data.json");
    std::fs::write(&data, serde_json::to_string(&records()).unwrap()).unwrap();
    let records = Table::unique(&data, "").unwrap();
    let missing = QuestionFile::open(Path::new("no/such.json"), &records, "give it").unwrap_err().to_string();
    assert!(missing.contains("no/such.json: does not exist; give it"), "{missing}");
    assert_eq!(given("").unwrap().1.form, None);
}
