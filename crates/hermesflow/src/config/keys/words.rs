//! What a schema says of a key, in words: its doc comment, its type and range, its values.

use serde_json::Value;

/// What a doc comment says.
#[derive(Debug, Default)]
pub struct Words {
    /// What the key means.
    pub meaning: String,
    /// What its number counts.
    pub unit: Option<String>,
    /// The default.
    pub default: Option<String>,
    /// Where it comes from.
    pub source: Option<String>,
}

impl Words {
    /// The parts of a doc comment.
    pub fn of(comment: &str) -> Self {
        let mut words = Self::default();
        let mut last: Option<&'static str> = None;
        for line in comment.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let mark = ["Unit: ", "Default: ", "Source: "].into_iter().find(|mark| line.starts_with(mark));
            let text = mark.map_or(line, |mark| &line[mark.len()..]);
            last = mark.or(last);
            let place = match last {
                Some("Unit: ") => words.unit.get_or_insert_default(),
                Some("Default: ") => words.default.get_or_insert_default(),
                Some("Source: ") => words.source.get_or_insert_default(),
                _ => &mut words.meaning,
            };
            if !place.is_empty() {
                place.push(' ');
            }
            place.push_str(text);
        }
        for part in [&mut words.unit, &mut words.default, &mut words.source].into_iter().flatten() {
            part.truncate(part.trim_end_matches('.').len());
        }
        words
    }
}

/// The type and range of a value in words.
pub fn kind(schema: &Value) -> String {
    let types = &schema["type"];
    let is = |name: &str| types == name || types.as_array().is_some_and(|all| all.iter().any(|one| one == name));
    let (least, most) = (&schema["minimum"], &schema["maximum"]);
    let range = match (least.is_number(), most.is_number()) {
        (true, true) => format!(", {} … {}", flow(least), flow(most)),
        (true, false) => format!(", {} or more", flow(least)),
        (false, true) => format!(", up to {}", flow(most)),
        (false, false) => String::new(),
    };
    let word = if is("integer") {
        "whole number"
    } else if is("number") {
        "number"
    } else if is("string") {
        "text"
    } else if is("boolean") {
        "true or false"
    } else if is("array") {
        "list"
    } else {
        "section"
    };
    nullable(&format!("{word}{range}"), schema)
}

/// The words, with null where a value may be that.
pub fn nullable(words: &str, schema: &Value) -> String {
    let null = |types: &Value| types.as_array().is_some_and(|all| all.iter().any(|one| one == "null"));
    if null(&schema["type"]) { format!("{words}, or null") } else { words.to_owned() }
}

/// Whether a value may be any text.
pub fn is_text(schema: &Value) -> bool {
    kind(schema).starts_with("text") && allowed(schema).is_empty()
}

/// The values of a key that has few, with their meaning.
pub fn allowed(schema: &Value) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for one in schema["oneOf"].as_array().into_iter().flatten() {
        let meaning = one["description"].as_str().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
        match (one.get("const"), one["enum"].as_array()) {
            (Some(value), _) => found.push((flow(value), meaning)),
            (None, Some(values)) => found.extend(values.iter().map(|value| (flow(value), String::new()))),
            (None, None) if one["properties"].is_object() => found.push(("a section".into(), meaning)),
            (None, None) if one["type"] == "number" => found.push((kind(one), meaning)),
            (None, None) => found.push(("a name".into(), meaning)),
        }
    }
    found.extend(schema["enum"].as_array().into_iter().flatten().map(|value| (flow(value), String::new())));
    found
}

/// A value as it would stand in YAML.
pub fn flow(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => format!("[{}]", list.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let pairs: Vec<String> = map.iter().map(|(name, value)| format!("{name}: {}", flow(value))).collect();
            format!("{{{}}}", pairs.join(", "))
        }
        Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
            Some(small) if small != 0.0 && small.abs() < 1e-3 => format!("{small:e}"),
            _ => number.to_string(),
        },
        other => other.to_string(),
    }
}
