//! Walks protobuf messages without holding their repeated fields: two bytes on the wire can be
//! hundreds in memory, and a body has millions of them.

use prost::bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

/// The embedded messages in field `tag` of `message`, in order. Ends after the first error.
pub(super) fn embedded(message: &[u8], tag: u32) -> impl Iterator<Item = Result<&[u8], String>> {
    let mut rest = message;
    std::iter::from_fn(move || {
        let next = next_embedded(&mut rest, tag);
        if next.is_err() {
            rest = &[];
        }
        next.transpose()
    })
}

fn next_embedded<'a>(rest: &mut &'a [u8], tag: u32) -> Result<Option<&'a [u8]>, String> {
    while rest.has_remaining() {
        let (found, wire_type) = decode_key(rest).map_err(|error| error.to_string())?;
        if found != tag || wire_type != WireType::LengthDelimited {
            skip_field(wire_type, found, rest, DecodeContext::default()).map_err(|error| error.to_string())?;
            continue;
        }
        let len = decode_varint(rest).map_err(|error| error.to_string())?;
        let message = usize::try_from(len).ok().and_then(|len| rest.split_at_checked(len));
        let (message, after) = message.ok_or("protobuf: a message is cut short")?;
        *rest = after;
        return Ok(Some(message));
    }
    Ok(None)
}
