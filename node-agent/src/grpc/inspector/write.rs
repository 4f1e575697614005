//! Writing maps: every entry is checked against the map's types before the first is written, and an Event says who wrote.

use std::io::ErrorKind;

use skep_crds::Reason;
use skep_kernel::dump::MapReader;
use skep_kernel::sys::map::a_type;
use skep_kernel::write::{self, Mode, WriteError};
use skep_object::globals::encode;
use skep_proto::v1::update_map_request::Mode as Asked;
use skep_proto::v1::{
    DeleteMapEntriesRequest, DeleteMapEntriesResponse, MapEntry, Notice, ProgramReport, UpdateMapRequest,
    UpdateMapResponse, datum::Datum,
};
use skep_proto::value::to_json;
use tonic::{Code, Request, Response, Status};

use super::{InspectorService, failed};
use crate::grpc::auth::{DELETE_MAPS, UPDATE_MAPS};
use crate::grpc::caller::caller;
use crate::grpc::refuse;
use crate::images::blocking;

/// Entries that one call may write.
const MOST: usize = 1 << 16;

impl InspectorService {
    pub(super) async fn write(
        &self,
        request: Request<UpdateMapRequest>,
    ) -> Result<Response<UpdateMapResponse>, Status> {
        let namespace = request.get_ref().program.as_ref().map(|p| p.namespace.clone()).unwrap_or_default();
        self.authorizer.check(&request, &namespace, UPDATE_MAPS).await?;
        let who = caller(&request).to_string();
        let request = request.into_inner();
        let report = self.report(request.program.as_ref())?;
        let reader = self.open(&report, &request.map).await?;
        bounded(request.entries.len(), "entries")?;
        let name = request.map.clone();
        may(&reader, &name, "written", write::refusal(reader.info()))?;
        let mode = match request.mode() {
            Asked::Unspecified => Mode::Any,
            Asked::Create => Mode::Create,
            Asked::Replace => Mode::Replace,
        };
        let (count, map) = (request.entries.len(), name.clone());
        blocking(move || {
            let encoded = request.entries.into_iter().enumerate().map(|(index, entry)| {
                encoded(&reader, entry).map_err(|why| {
                    Status::invalid_argument(format!("map {map}: entry {index}: {why}; nothing was written"))
                })
            });
            let entries = encoded.collect::<Result<Vec<_>, Status>>()?;
            write::write(reader.map(), &entries, mode).map_err(|e| refused(&map, mode, e))
        })
        .await
        .map_err(failed)??;
        self.say(&report, format!("{who} wrote {} of map {name}", entries(count)));
        Ok(Response::new(UpdateMapResponse { written: count as u64 }))
    }

    pub(super) async fn delete(
        &self,
        request: Request<DeleteMapEntriesRequest>,
    ) -> Result<Response<DeleteMapEntriesResponse>, Status> {
        let namespace = request.get_ref().program.as_ref().map(|p| p.namespace.clone()).unwrap_or_default();
        self.authorizer.check(&request, &namespace, DELETE_MAPS).await?;
        let who = caller(&request).to_string();
        let request = request.into_inner();
        let report = self.report(request.program.as_ref())?;
        let reader = self.open(&report, &request.map).await?;
        bounded(request.keys.len(), "keys")?;
        let name = request.map.clone();
        may(&reader, &name, "taken from", write::deletion_refusal(reader.info()))?;
        let (count, map) = (request.keys.len() as u64, name.clone());
        let deleted = blocking(move || {
            let keys = request.keys.into_iter().enumerate().map(|(index, key)| {
                self::key(&reader, key.datum).map_err(|why| {
                    Status::invalid_argument(format!("map {map}: key {index}: {why}; nothing was deleted"))
                })
            });
            let keys = keys.collect::<Result<Vec<_>, Status>>()?;
            write::delete(reader.map(), &keys).map_err(|WriteError { index, source, .. }| {
                failed(format!("map {map}: key {index}: {source}; those before it are deleted"))
            })
        })
        .await
        .map_err(failed)??;
        if deleted > 0 {
            self.say(&report, format!("{who} deleted {} of map {name}", entries(deleted as usize)));
        }
        Ok(Response::new(DeleteMapEntriesResponse { deleted, absent: count - deleted }))
    }

    pub(super) fn say(&self, report: &ProgramReport, message: String) {
        let (uid, reason) = (report.uid.clone(), Reason::MapWritten.to_string());
        self.shared.reports.notice(Notice { uid, warning: false, reason, message });
    }
}

fn entries(count: usize) -> String {
    if count == 1 { "1 entry".to_owned() } else { format!("{count} entries") }
}

fn bounded(count: usize, what: &str) -> Result<(), Status> {
    match count {
        0 => Err(Status::invalid_argument(format!("no {what} are given"))),
        1..=MOST => Ok(()),
        more => Err(Status::invalid_argument(format!("{more} {what} in one call; at most {MOST}"))),
    }
}

fn may(reader: &MapReader, map: &str, verb: &str, why_not: Option<&'static str>) -> Result<(), Status> {
    let frozen =
        || reader.facts().frozen.then_some("it is frozen: constants of a revision change with the spec's globals");
    match why_not.or_else(frozen) {
        None => Ok(()),
        Some(why) => {
            let message = format!("map {map}, {}, cannot be {verb}: {why}", a_type(reader.info().map_type));
            Err(refuse(Code::FailedPrecondition, Reason::PermissionDenied, message))
        }
    }
}

fn refused(map: &str, mode: Mode, error: WriteError) -> Status {
    let WriteError { index, stay, source } = error;
    let rest = match stay {
        0 => "nothing was written".to_owned(),
        stay => format!("{} before it stay written", entries(stay)),
    };
    let (code, reason, why) = match (source.kind(), mode) {
        (ErrorKind::AlreadyExists, _) => {
            (Code::AlreadyExists, Reason::MapIncompatible, "its key is there already".to_owned())
        }
        (ErrorKind::NotFound, Mode::Replace) => {
            (Code::NotFound, Reason::TargetNotFound, "its key is not there".to_owned())
        }
        (ErrorKind::ArgumentListTooLong, _) => {
            (Code::ResourceExhausted, Reason::LimitReached, "the map is full, or its key outside of it".to_owned())
        }
        (ErrorKind::PermissionDenied, _) => {
            (Code::FailedPrecondition, Reason::PermissionDenied, "the map is read-only for user space".to_owned())
        }
        _ => (Code::Internal, Reason::Internal, source.to_string()),
    };
    refuse(code, reason, format!("map {map}: entry {index}: {why}; {rest}"))
}

fn encoded(reader: &MapReader, entry: MapEntry) -> Result<write::Entry, String> {
    let key = key(reader, entry.key.and_then(|key| key.datum))?;
    let value = value(reader, entry.value.and_then(|value| value.datum))?;
    match write::value_refusal(reader.info(), &value) {
        Some(why) => Err(format!("value.{why}")),
        None => Ok((key, value)),
    }
}

/// A key's bytes.
pub fn key(reader: &MapReader, key: Option<Datum>) -> Result<Vec<u8>, String> {
    let bytes = key_bytes(reader, key)?;
    match write::key_refusal(reader.info(), &bytes) {
        Some(why) => Err(format!("key: {why}")),
        None => Ok(bytes),
    }
}

fn key_bytes(reader: &MapReader, key: Option<Datum>) -> Result<Vec<u8>, String> {
    let size = reader.key_len();
    match key {
        None if size == 0 => Ok(Vec::new()),
        None => Err("it has no key".into()),
        Some(_) if size == 0 => Err("the map has no keys; leave it out".into()),
        Some(Datum::Raw(bytes)) => of_size(bytes.to_vec(), size, "key"),
        Some(Datum::Json(json)) => {
            let bytes = encode(&reader.key, &to_json(&json)).map_err(|e| e.under("key").to_string())?;
            of_size(bytes, size, "key")
        }
    }
}

fn value(reader: &MapReader, value: Option<Datum>) -> Result<Vec<u8>, String> {
    let json = match value.ok_or("it has no value")? {
        Datum::Raw(bytes) => return of_size(bytes.to_vec(), reader.entry_len(), "value"),
        Datum::Json(json) => to_json(&json),
    };
    let one = |json: &serde_json::Value, place: &str| {
        let bytes = encode(&reader.value, json).map_err(|e| e.under(place).to_string())?;
        of_size(bytes, reader.info().value_size as usize, place)
    };
    if !reader.info().is_per_cpu() {
        return one(&json, "value");
    }
    let cpus = reader.values_per_entry as usize;
    let Some(values) = json.as_array().filter(|values| values.len() == cpus) else {
        return Err(format!("value: a list of {cpus} values is expected, one for each possible CPU"));
    };
    let mut all = Vec::with_capacity(reader.entry_len());
    for (cpu, json) in values.iter().enumerate() {
        all.extend(one(json, &format!("value[{cpu}]"))?);
        all.resize((cpu + 1) * reader.value_stride as usize, 0);
    }
    Ok(all)
}

fn of_size(bytes: Vec<u8>, size: usize, what: &str) -> Result<Vec<u8>, String> {
    match bytes.len() == size {
        true => Ok(bytes),
        false => Err(format!("{what}: {} bytes; the map has {size}", bytes.len())),
    }
}
