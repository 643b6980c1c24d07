//! Judges JSON by a message type, in protobuf's mapping.

use serde_json::value::RawValue;

use super::{DEPTH_MAX, Fault, Kind, Known, Schema};
use crate::protocols::body::{first_value, next_token, printable, text_of};

impl Schema {
    /// Refuses JSON with anything in it, at any depth, that is no part of a message of this type. It was validated
    /// before, and is read once from its beginning to its end.
    pub(in super::super) fn judge_json<'a>(&self, json: &'a RawValue) -> Result<(), Fault<'a>> {
        let mut rest = json.get();
        self.judge_object(&mut rest, 0)
    }

    /// Reads the object that `rest` begins with.
    fn judge_object<'a>(&self, rest: &mut &'a str, depth: u32) -> Result<(), Fault<'a>> {
        if !rest.starts_with('{') {
            return Err(Fault::new(rest.as_bytes(), format!("{} must be an object", self.name)));
        }
        if depth > DEPTH_MAX {
            let reason = format!("more than {DEPTH_MAX} messages within each other");
            return Err(Fault::new(rest.as_bytes(), reason));
        }
        *rest = next_token(&rest[1..]);
        let mut present = 0_u32;
        while let Some((key, behind)) = first_value(rest).filter(|_| rest.starts_with('"')) {
            let key = key.get();
            let name = text_of(key);
            let fault = |complaint: &str| {
                let reason = format!("{} {complaint} {}", printable(name.as_deref()), self.name);
                Err(Fault::new(key.as_bytes(), reason))
            };
            let known =
                self.fields.iter().enumerate().find(|(_, known)| name.as_deref().is_some_and(|it| known.is_called(it)));
            let Some((index, known)) = known else { return fault("is not a known member of") };
            *rest = next_token(behind).strip_prefix(':').map(next_token).unwrap_or_default();
            // By the mapping `null` is a field that is not there.
            if let Some(behind) = rest.strip_prefix("null") {
                *rest = next_token(behind);
                continue;
            }
            let others = if self.is_one_of { u32::MAX } else { 1 << index };
            if present & others != 0 {
                return fault("is there twice in");
            }
            present |= 1 << index;
            known.judge_value(rest, depth)?;
            *rest = next_token(rest);
        }
        *rest = rest.strip_prefix('}').unwrap_or_default();
        Ok(())
    }
}

impl Known {
    /// Whether `name` is the field's in the mapping, or its original one: `schemaUrl` or `schema_url`.
    fn is_called(&self, name: &str) -> bool {
        let original = || {
            self.name.chars().flat_map(|letter| {
                let capital = letter.is_ascii_uppercase();
                capital.then_some('_').into_iter().chain([letter.to_ascii_lowercase()])
            })
        };
        self.name == name || original().eq(name.chars())
    }

    fn judge_value<'a>(&self, rest: &mut &'a str, depth: u32) -> Result<(), Fault<'a>> {
        if !self.repeated {
            return self.judge_one(rest, depth);
        }
        if !rest.starts_with('[') {
            return Err(Fault::new(rest.as_bytes(), format!("`{}` must be an array", self.name)));
        }
        *rest = next_token(&rest[1..]);
        while !rest.is_empty() && !rest.starts_with(']') {
            self.judge_one(rest, depth)?;
            *rest = next_token(rest);
        }
        *rest = rest.strip_prefix(']').unwrap_or_default();
        Ok(())
    }

    fn judge_one<'a>(&self, rest: &mut &'a str, depth: u32) -> Result<(), Fault<'a>> {
        if let Kind::Message(schema) = self.kind {
            return schema.judge_object(rest, depth + 1);
        }
        let fault = || Fault::new(rest.as_bytes(), format!("`{}` must be {}", self.name, self.kind.in_json()));
        let (value, behind) = first_value(rest).ok_or_else(fault)?;
        if !self.kind.is_of_json(value) {
            return Err(fault());
        }
        *rest = behind;
        Ok(())
    }
}

impl Kind {
    fn in_json(self) -> &'static str {
        match self {
            Kind::Text | Kind::Base64 | Kind::Hex => "a text",
            Kind::Bool => "true or false",
            Kind::Double => "a number",
            Kind::Message(schema) => schema.name,
            _ => "a whole number in its type's range",
        }
    }

    fn is_of_json(self, value: &RawValue) -> bool {
        let is_text = value.get().starts_with('"');
        // A number may be in quotes, and those of 64 bits mostly are.
        let number = || text_of(value.get()).filter(|_| is_text).unwrap_or(value.get().into()).parse::<f64>().ok();
        let is_whole = |least: f64, most: f64| {
            number().is_some_and(|number| number.fract() == 0.0 && (least..=most).contains(&number))
        };
        match self {
            Kind::Text | Kind::Base64 | Kind::Hex => is_text,
            Kind::Bool => matches!(value.get(), "true" | "false"),
            Kind::Double => number().is_some(),
            Kind::Int32 => is_whole(i32::MIN.into(), i32::MAX.into()),
            Kind::Uint32 | Kind::Fixed32 => is_whole(0.0, u32::MAX.into()),
            Kind::Int64 => is_whole(i64::MIN as f64, i64::MAX as f64),
            Kind::Fixed64 => is_whole(0.0, u64::MAX as f64),
            Kind::Message(_) => false,
        }
    }
}
