//! The JSON Schema of a file of settings, which the structures of the configuration describe themselves.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::config::aliases;

/// The schema of the files that hold a `T`: every key with its doc comment, type, range and default.
pub fn of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    tidy(&mut schema);
    schema
}

/// Takes out how many bits a number has, which no file shows.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            map.remove("format");
            map.values_mut().for_each(tidy);
        }
        Value::Array(list) => list.iter_mut().for_each(tidy),
        _ => {}
    }
}

/// A schema that accepts the earlier names of keys too, and says which they are now: for editors.
pub fn with_earlier_names(today_only: &Value) -> Value {
    let mut schema = today_only.clone();
    for (earlier, today) in aliases::ALIASES {
        let Some(mut meant) = today_only.pointer(&pointer(today)).cloned() else { continue };
        let Some((section, name)) = earlier.rsplit_once('.') else { continue };
        meant["description"] = format!("Earlier name of {today}.").into();
        meant["deprecated"] = true.into();
        let section = pointer(section) + "/properties";
        let Some(properties) = schema.pointer_mut(&section).and_then(Value::as_object_mut) else { continue };
        let both = properties.get(name).map(|section| either(section, &meant));
        properties.insert(name.to_owned(), both.unwrap_or(meant));
    }
    schema
}

/// A value that is a section today and was a single value once.
fn either(section: &Value, single: &Value) -> Value {
    let mut outer = Map::new();
    outer.insert("description".into(), section["description"].clone());
    outer.insert("default".into(), section["default"].clone());
    outer.insert("anyOf".into(), json!([section, single]));
    Value::Object(outer)
}

fn pointer(key: &str) -> String {
    key.split('.').map(|part| format!("/properties/{part}")).collect()
}

/// The schema of the section that a value may be: itself, or the alternative that has keys.
pub fn object(schema: &Value) -> Option<&Value> {
    if schema["properties"].is_object() {
        return Some(schema);
    }
    let alternatives = schema["anyOf"].as_array().or_else(|| schema["oneOf"].as_array())?;
    alternatives.iter().find(|one| one["properties"].is_object())
}

/// Whether a value may be a section and nothing else but null.
pub fn is_section(schema: &Value) -> bool {
    schema["properties"].is_object()
        || schema["anyOf"].as_array().is_some_and(|alternatives| {
            object(schema).is_some()
                && alternatives.iter().all(|one| one["properties"].is_object() || one["type"] == "null")
        })
}
