//! Reads protobuf field by field from the wire and writes messages as JSON. No message is decoded into memory, because
//! two bytes on the wire would become hundreds, and a body may have millions of messages.

mod json;

use std::io::{self, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use prost::bytes::Buf;
use prost::encoding::{WireType, decode_key, decode_varint};

use super::body::{BodyError, Line};

/// How deep messages within messages are read; as deep as protobuf's own decoders do.
const DEPTH_MAX: u32 = 100;
/// The member for fields that this daemon does not know: their bytes, tags included, in base64.
pub(super) const UNKNOWN_FIELDS: &str = "_unknownFields";

/// A field of a message.
#[derive(Clone, Copy)]
pub(super) struct Field<'a> {
    pub(super) number: u32,
    pub(super) value: Wire<'a>,
    /// The whole field, tag included.
    pub(super) bytes: &'a [u8],
}

/// A value on the wire.
#[derive(Clone, Copy)]
pub(super) enum Wire<'a> {
    Varint(u64),
    Fixed32(u32),
    Fixed64(u64),
    /// A text, bytes or a message.
    Bytes(&'a [u8]),
}

/// What is wrong with a message, and where.
#[derive(Debug)]
pub(super) struct Fault<'a> {
    at: &'a [u8],
    reason: String,
}

impl<'a> Fault<'a> {
    pub(super) fn new(at: &'a [u8], reason: impl ToString) -> Self {
        Fault { at, reason: reason.to_string() }
    }

    /// The same fault, told of what stands beside records where there is none. Each record stores what stands beside
    /// it; without one it would be lost.
    pub(super) fn without_records(self) -> Self {
        Fault { reason: format!("{}, and no record is there to be stored with it", self.reason), ..self }
    }

    /// A fault of a field: `holder` does not have it, has it only once, or has it with another type.
    pub(super) fn of_field(field: &Field<'a>, complaint: &str, holder: &str) -> Self {
        Fault::new(field.bytes, format!("protobuf: field {} {complaint} {holder}", field.number))
    }

    /// The fault as an error of `body`, in event number `event`.
    pub(super) fn within(self, body: &[u8], event: u64) -> BodyError {
        BodyError::invalid(body, self.at, event, self.reason)
    }
}

pub(super) const NOT_KNOWN: &str = "is not a known one of";
pub(super) const TWICE: &str = "is there twice in";
pub(super) const OF_ANOTHER_TYPE: &str = "is of another type in";

/// The fields of `message`, in order. Ends after the first fault.
pub(super) fn fields(message: &[u8]) -> impl Iterator<Item = Result<Field<'_>, Fault<'_>>> {
    let mut rest = message;
    std::iter::from_fn(move || {
        let start = rest;
        if start.is_empty() {
            return None;
        }
        let field = next_field(&mut rest).map_err(|reason| Fault::new(start, reason));
        if field.is_err() {
            rest = &[];
        }
        Some(field)
    })
}

fn next_field<'a>(rest: &mut &'a [u8]) -> Result<Field<'a>, String> {
    const CUT: &str = "protobuf: a field is cut short";
    let start = *rest;
    let (number, wire_type) = decode_key(rest).map_err(|error| error.to_string())?;
    let value = match wire_type {
        WireType::Varint => Wire::Varint(decode_varint(rest).map_err(|error| error.to_string())?),
        WireType::ThirtyTwoBit => Wire::Fixed32(rest.try_get_u32_le().map_err(|_| CUT)?),
        WireType::SixtyFourBit => Wire::Fixed64(rest.try_get_u64_le().map_err(|_| CUT)?),
        WireType::LengthDelimited => {
            let len = decode_varint(rest).map_err(|error| error.to_string())?;
            let (value, after) = usize::try_from(len).ok().and_then(|len| rest.split_at_checked(len)).ok_or(CUT)?;
            *rest = after;
            Wire::Bytes(value)
        }
        WireType::StartGroup | WireType::EndGroup => return Err("protobuf: a group, which no message here has".into()),
    };
    Ok(Field { number, value, bytes: &start[..start.len() - rest.len()] })
}

/// A message type: its published fields and their names in JSON.
pub(super) struct Schema {
    pub(super) name: &'static str,
    pub(super) fields: &'static [Known],
    /// Whether at most one of the fields may be there (`oneof`).
    pub(super) is_one_of: bool,
}

/// A known field of a message type.
pub(super) struct Known {
    number: u32,
    name: &'static str,
    kind: Kind,
    repeated: bool,
}

/// A field that may be there once.
pub(super) const fn once(number: u32, name: &'static str, kind: Kind) -> Known {
    Known { number, name, kind, repeated: false }
}

/// A field that may be there any number of times.
pub(super) const fn often(number: u32, name: &'static str, kind: Kind) -> Known {
    Known { number, name, kind, repeated: true }
}

/// The type of a field. A number that JSON can't express exactly is written as text.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Text,
    Base64,
    Hex,
    Bool,
    Int32,
    Int64,
    Uint32,
    Fixed32,
    Fixed64,
    Double,
    Message(&'static Schema),
}

impl Kind {
    fn is_of(self, value: Wire<'_>) -> bool {
        match self {
            Kind::Text | Kind::Base64 | Kind::Hex | Kind::Message(_) => matches!(value, Wire::Bytes(_)),
            Kind::Bool | Kind::Int32 | Kind::Int64 | Kind::Uint32 => matches!(value, Wire::Varint(_)),
            Kind::Fixed32 => matches!(value, Wire::Fixed32(_)),
            Kind::Fixed64 | Kind::Double => matches!(value, Wire::Fixed64(_)),
        }
    }

    fn write(self, value: Wire<'_>, out: &mut Line<'_>) -> io::Result<()> {
        match (self, value) {
            (Kind::Text, Wire::Bytes(text)) => out.text(text),
            (Kind::Base64, Wire::Bytes(bytes)) => write!(out, "\"{}\"", BASE64.encode(bytes)),
            (Kind::Hex, Wire::Bytes(bytes)) => {
                out.write_all(b"\"")?;
                bytes.iter().try_for_each(|byte| write!(out, "{byte:02x}"))?;
                out.write_all(b"\"")
            }
            (Kind::Message(schema), Wire::Bytes(message)) => schema.write(message, out),
            (Kind::Bool, Wire::Varint(value)) => write!(out, "{}", value != 0),
            // A negative number is sent in ten bytes, of which the lowest 32 bits count.
            (Kind::Int32, Wire::Varint(value)) => write!(out, "{}", value as i32),
            (Kind::Int64, Wire::Varint(value)) => write!(out, "\"{}\"", value as i64),
            (Kind::Uint32, Wire::Varint(value)) => write!(out, "{}", value as u32),
            (Kind::Fixed32, Wire::Fixed32(value)) => write!(out, "{value}"),
            (Kind::Fixed64, Wire::Fixed64(value)) => write!(out, "\"{value}\""),
            (Kind::Double, Wire::Fixed64(bits)) => write_double(f64::from_bits(bits), out),
            // Never reached: `judge` has refused every other type.
            _ => Ok(()),
        }
    }
}

/// Infinity and NaN, which JSON can't express, are texts by protobuf's mapping.
fn write_double(value: f64, out: &mut Line<'_>) -> io::Result<()> {
    match value {
        _ if value.is_nan() => out.write_all(b"\"NaN\""),
        f64::INFINITY => out.write_all(b"\"Infinity\""),
        f64::NEG_INFINITY => out.write_all(b"\"-Infinity\""),
        _ => Ok(serde_json::to_writer(out, &value)?),
    }
}

impl Schema {
    /// Refuses a message that can't be read, or that has a field twice of which decoders
    /// take the last and drop the first.
    pub(super) fn judge<'a>(&self, message: &'a [u8]) -> Result<(), Fault<'a>> {
        self.judge_at(message, 0, false)
    }

    /// Refuses also a message with a field that is not known, at any depth.
    pub(super) fn judge_whole<'a>(&self, message: &'a [u8]) -> Result<(), Fault<'a>> {
        self.judge_at(message, 0, true)
    }

    fn judge_at<'a>(&self, message: &'a [u8], depth: u32, all_known: bool) -> Result<(), Fault<'a>> {
        if depth > DEPTH_MAX {
            return Err(Fault::new(message, format!("protobuf: more than {DEPTH_MAX} messages within each other")));
        }
        let mut present = 0_u32;
        for field in fields(message) {
            let field = field?;
            let Some((index, known)) = self.known(field.number) else {
                match all_known {
                    true => return Err(Fault::of_field(&field, NOT_KNOWN, self.name)),
                    false => continue,
                }
            };
            if !known.kind.is_of(field.value) {
                return Err(Fault::of_field(&field, OF_ANOTHER_TYPE, self.name));
            }
            let others = if self.is_one_of { u32::MAX } else { 1 << index };
            if !known.repeated && present & others != 0 {
                return Err(Fault::of_field(&field, TWICE, self.name));
            }
            present |= 1 << index;
            if let (Kind::Message(schema), Wire::Bytes(message)) = (known.kind, field.value) {
                schema.judge_at(message, depth + 1, all_known)?;
            }
        }
        Ok(())
    }

    /// Writes a message that `judge` has passed, by protobuf's mapping to JSON. Fields that
    /// are not there are not written.
    pub(super) fn write(&self, message: &[u8], out: &mut Line<'_>) -> io::Result<()> {
        let mut present = 0_u32;
        let mut has_unknown = false;
        for field in fields(message).flatten() {
            match self.known(field.number) {
                Some((index, _)) => present |= 1 << index,
                None => has_unknown = true,
            }
        }
        let mut separator = "{";
        for (index, known) in self.fields.iter().enumerate().filter(|(index, _)| present & 1 << index != 0) {
            debug_assert!(index < 32);
            write!(out, "{separator}\"{}\":", known.name)?;
            separator = ",";
            let mut values = fields(message).flatten().filter(|field| field.number == known.number);
            if known.repeated {
                let mut before: &[u8] = b"[";
                values.try_for_each(|field| {
                    out.write_all(std::mem::replace(&mut before, b","))?;
                    known.kind.write(field.value, out)
                })?;
                out.write_all(b"]")?;
            } else if let Some(field) = values.next() {
                known.kind.write(field.value, out)?;
            }
        }
        if has_unknown {
            write!(out, "{separator}\"{UNKNOWN_FIELDS}\":")?;
            separator = ",";
            write_unknown(message, |field| self.known(field.number).is_none(), out)?;
        }
        out.write_all(if separator == "{" { b"{}" } else { b"}" })
    }

    fn known(&self, number: u32) -> Option<(usize, &'static Known)> {
        self.fields.iter().enumerate().find(|(_, known)| known.number == number)
    }
}

/// The fields of `message` that `schema` does not have, as one text in base64.
pub(super) fn write_unknown(
    message: &[u8],
    is_unknown: impl Fn(&Field<'_>) -> bool,
    out: &mut Line<'_>,
) -> io::Result<()> {
    let unknown: Vec<u8> =
        fields(message).flatten().filter(is_unknown).flat_map(|field| field.bytes.iter().copied()).collect();
    write!(out, "\"{}\"", BASE64.encode(unknown))
}
