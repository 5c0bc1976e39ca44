//! A number of a configuration that may be left open: in YAML a number or `auto`.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A number of 0 or more, or `auto`: what follows from other settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum AutoNumber {
    /// Left open.
    Auto,
    /// This number.
    Number(f64),
}

impl AutoNumber {
    /// This number, or `choice` where it is left open.
    #[must_use]
    pub fn or(self, choice: f64) -> Self {
        if self == Self::Auto { Self::Number(choice) } else { self }
    }

    /// The number; 0 while it is open.
    pub fn number(self) -> f64 {
        match self {
            Self::Auto => 0.0,
            Self::Number(number) => number,
        }
    }
}

impl Serialize for AutoNumber {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Number(number) => serializer.serialize_f64(*number),
        }
    }
}

impl<'de> Deserialize<'de> for AutoNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = AutoNumber;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number or auto")
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<AutoNumber, E> {
                Ok(AutoNumber::Number(number))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<AutoNumber, E> {
                Ok(AutoNumber::Number(number as f64))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<AutoNumber, E> {
                Ok(AutoNumber::Number(number as f64))
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<AutoNumber, E> {
                match name {
                    "auto" => Ok(AutoNumber::Auto),
                    other => Err(E::invalid_value(de::Unexpected::Str(other), &self)),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for AutoNumber {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "AutoNumber".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "oneOf": [
            { "const": "auto", "description": "What follows from other settings; config.yaml says which was chosen." },
            { "type": "number", "minimum": 0.0, "description": "This number." },
        ] })
    }
}
