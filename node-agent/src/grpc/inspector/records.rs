//! Records that are put into user ring buffers, for programs to take out.

use std::io::ErrorKind;

use skep_crds::Reason;
use skep_kernel::records;
use skep_kernel::remains::holders_of_map;
use skep_kernel::sys::map::{a_type, types};
use skep_object::btf::desc::TypeDesc;
use skep_object::globals::encode;
use skep_proto::v1::{Datum, WriteRecordsRequest, datum};
use skep_proto::value::to_json;
use tonic::{Code, Request, Status};

use super::events::described;
use super::{InspectorService, failed};
use crate::grpc::auth::UPDATE_MAPS;
use crate::grpc::caller::caller;
use crate::grpc::refuse;
use crate::images::blocking;

/// Records that one call may write.
const MOST: usize = 1 << 16;

impl InspectorService {
    /// How many were written.
    pub(super) async fn put_in(&self, request: Request<WriteRecordsRequest>) -> Result<u64, Status> {
        let namespace = request.get_ref().program.as_ref().map(|p| p.namespace.clone()).unwrap_or_default();
        self.authorizer.check(&request, &namespace, UPDATE_MAPS).await?;
        let who = caller(&request).to_string();
        let request = request.into_inner();
        let report = self.report(request.program.as_ref())?;
        let reader = self.open(&report, &request.map).await?;
        let (map, info) = (request.map.clone(), reader.info().clone());
        if info.map_type != types::USER_RINGBUF {
            let kind = a_type(info.map_type);
            let message = format!("map {map}, {kind}, takes no records: user ring buffers do; update its entries");
            return Err(refuse(Code::FailedPrecondition, Reason::KernelUnsupported, message));
        }
        if !(1..=MOST).contains(&request.records.len()) {
            let message = format!("{} records in one call: one at least, and at most {MOST}", request.records.len());
            return Err(Status::invalid_argument(message));
        }
        let desc = match request.r#type.as_str() {
            "" => None,
            name => Some(described(&report, name).await?),
        };
        let encoded = request.records.into_iter().enumerate().map(|(index, record)| {
            record_bytes(record, desc.as_ref()).map_err(|why| {
                Status::invalid_argument(format!("map {map}: record {index}: {why}; nothing was written"))
            })
        });
        let encoded = encoded.collect::<Result<Vec<_>, Status>>()?;
        let count = encoded.len();
        // One writer at a time: two would overwrite each other.
        let _turn = self.writing.lock().await;
        let (share, name) = (request.share, map.clone());
        blocking(move || {
            let holders = if share { Vec::new() } else { holders_of_map(info.id) };
            if !holders.is_empty() {
                let message = format!(
                    "map {name} is open in {}, which may write it too: two writers overwrite each other; ask with share if it does not",
                    holders.join(", ")
                );
                return Err(refuse(Code::FailedPrecondition, Reason::HookBusy, message));
            }
            records::write(reader.into_fd(), &encoded).map_err(|e| refused(&name, info.max_entries, &e))
        })
        .await
        .map_err(failed)??;
        let records = if count == 1 { "1 record".to_owned() } else { format!("{count} records") };
        self.say(&report, format!("{who} put {records} into map {map}"));
        Ok(count as u64)
    }
}

fn record_bytes(record: Datum, desc: Option<&TypeDesc>) -> Result<Vec<u8>, String> {
    match (record.datum, desc) {
        (None, _) => Err("it is empty".into()),
        (Some(datum::Datum::Raw(bytes)), _) => Ok(bytes.to_vec()),
        (Some(datum::Datum::Json(json)), Some(desc)) => {
            encode(desc, &to_json(&json)).map_err(|e| e.under("record").to_string())
        }
        (Some(datum::Datum::Json(_)), None) => Err("JSON needs the records' type: name their struct in `type`".into()),
    }
}

fn refused(map: &str, size: u32, error: &std::io::Error) -> Status {
    match error.kind() {
        ErrorKind::StorageFull => {
            let message =
                format!("map {map}: there is no room for them until its programs take some out; nothing was written");
            refuse(Code::ResourceExhausted, Reason::LimitReached, message)
        }
        ErrorKind::InvalidInput => {
            let message =
                format!("map {map}: a record is longer than the buffer, of {size} bytes with 8 for each record");
            Status::invalid_argument(message)
        }
        _ => failed(format!("map {map}: {error}")),
    }
}
