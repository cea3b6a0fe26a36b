//! Messages as JSON and back, by protobuf's mapping with the gateway's choices.

use bytes::Bytes;
use prost::Message as _;
use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};
use tonic::Status;

use crate::api::beside;

/// Translating more than this is left to another thread: the connections of this one would wait for it.
const SHORT_BYTES: usize = 64 * 1024;

const READING: DeserializeOptions = DeserializeOptions::new().deny_unknown_fields(false);
const WRITING: SerializeOptions =
    SerializeOptions::new().use_proto_field_name(true).skip_default_fields(true);

/// The encoded message that a text begins with. Text without anything in it is a message without anything in it.
pub(super) fn parse(descriptor: &MessageDescriptor, text: &[u8]) -> Result<Vec<u8>, Status> {
    if text.iter().all(u8::is_ascii_whitespace) {
        return Ok(Vec::new());
    }
    let mut json = serde_json::Deserializer::from_slice(text);
    let message = DynamicMessage::deserialize_with_options(descriptor.clone(), &mut json, &READING);
    match message {
        Ok(message) => Ok(message.encode_to_vec()),
        Err(error) => Err(Status::invalid_argument(format!("{}: {error}", descriptor.full_name()))),
    }
}

/// An encoded message as JSON, on one line without its end.
pub(super) fn print(descriptor: &MessageDescriptor, message: Bytes) -> Result<Vec<u8>, Status> {
    let unreadable = |error: &dyn std::fmt::Display| {
        Status::internal(format!("hadron: {} as JSON: {error}", descriptor.full_name()))
    };
    let mut text = Vec::with_capacity(message.len() * 2);
    let message = DynamicMessage::decode(descriptor.clone(), message).map_err(|error| unreadable(&error))?;
    let mut json = serde_json::Serializer::new(&mut text);
    message.serialize_with_options(&mut json, &WRITING).map_err(|error| unreadable(&error))?;
    Ok(text)
}

/// [`parse`], beside the connections of this thread if it may take long.
pub(super) async fn parse_beside(descriptor: &MessageDescriptor, text: Bytes) -> Result<Vec<u8>, Status> {
    let descriptor = descriptor.clone();
    beside(text.len(), move || parse(&descriptor, &text)).await
}

/// [`print`], beside the connections of this thread if it may take long.
pub(super) async fn print_beside(descriptor: &MessageDescriptor, message: Bytes) -> Result<Vec<u8>, Status> {
    let descriptor = descriptor.clone();
    beside(message.len(), move || print(&descriptor, message)).await
}

async fn beside(
    length: usize,
    work: impl FnOnce() -> Result<Vec<u8>, Status> + Send + 'static,
) -> Result<Vec<u8>, Status> {
    match length > SHORT_BYTES {
        false => work(),
        true => beside::run(work).await?,
    }
}
