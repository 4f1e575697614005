//! Over real TLS, with an API server that knows one token.

use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair,
};
use skep_proto::v1::agent_client::AgentClient;
use skep_proto::v1::inspector_client::InspectorClient;
use skep_proto::v1::{GetNodeRequest, ListProgramsRequest};
use skep_proto::{AGENT_AUDIENCE, OPERATOR_NAME};
use tokio::net::TcpSocket;
use tonic::codegen::http::{Request, Response};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;

use super::*;
use crate::grpc::tls::Identity;

const TOKEN: &str = "good";

/// A listener with the services that need no kernel; of ours there is none, so who is admitted there hears
/// "unimplemented".
struct Served {
    address: SocketAddr,
    reviews: Arc<AtomicUsize>,
    ca: Issuer<'static, KeyPair>,
    ca_pem: String,
    _dir: tempfile::TempDir,
    _task: JoinSet<io::Result<()>>,
}

async fn serve() -> Served {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let ca_pem = params.self_signed(&key).unwrap().pem();
    let ca = Issuer::new(params, key);

    let dir = tempfile::tempdir().unwrap();
    let identity = Identity::open("n", &dir.path().join("identity.pem"), std::time::SystemTime::now()).unwrap();
    let request = CertificateSigningRequestParams::from_pem(&identity.request().unwrap()).unwrap();
    identity.install(&request.signed_by(&ca).unwrap().pem()).unwrap();
    let bundle = dir.path().join("ca.crt");
    std::fs::write(&bundle, &ca_pem).unwrap();

    let (client, reviews) = api_server();
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status("", tonic_health::ServingStatus::Serving).await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(skep_proto::DESCRIPTOR)
        .build_v1()
        .unwrap();
    let routes = Routes::new(health_service).add_service(reflection);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptors = Acceptors::new(Arc::new(identity), bundle);
    let mut task = JoinSet::new();
    let authorizer = Arc::new(Authorizer::new(Some(client)));
    task.spawn(admitted(listener, acceptors, routes, authorizer, CancellationToken::new()));
    Served { address, reviews, ca, ca_pem, _dir: dir, _task: task }
}

/// Reviews tokens, and counts.
fn api_server() -> (kube::Client, Arc<AtomicUsize>) {
    let reviews = Arc::new(AtomicUsize::new(0));
    let counted = reviews.clone();
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let counted = counted.clone();
        async move {
            assert_eq!(request.uri().path(), "/apis/authentication.k8s.io/v1/tokenreviews");
            counted.fetch_add(1, Ordering::Relaxed);
            let body = request.into_body().collect_bytes().await.unwrap();
            let mut review: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let good = review["spec"]["token"] == TOKEN;
            review["status"] =
                serde_json::json!({"authenticated": good, "user": {"username": "eve"}, "audiences": [AGENT_AUDIENCE]});
            let body = kube::client::Body::from(serde_json::to_vec(&review).unwrap());
            Ok::<_, std::convert::Infallible>(Response::new(body))
        }
    });
    (kube::Client::new(service, "default"), reviews)
}

impl Served {
    async fn channel(&self, operator: bool) -> Channel {
        let mut tls =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.ca_pem)).domain_name("n.node.skep");
        if operator {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, OPERATOR_NAME);
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            let certificate = params.signed_by(&key, &self.ca).unwrap();
            tls = tls.identity(tonic::transport::Identity::from_pem(certificate.pem(), key.serialize_pem()));
        }
        let endpoint = Endpoint::from_shared(format!("https://{}", self.address)).unwrap();
        endpoint.tls_config(tls).unwrap().connect().await.unwrap()
    }
}

fn with<T>(message: T, token: Option<&str>) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    request
}

fn code<T>(answer: Result<T, Status>) -> Code {
    answer.map_or_else(|status| status.code(), |_| Code::Ok)
}

async fn inspector(channel: &Channel, token: Option<&str>) -> Code {
    code(InspectorClient::new(channel.clone()).list_programs(with(ListProgramsRequest::default(), token)).await)
}

async fn agent(channel: &Channel, token: Option<&str>) -> Code {
    code(AgentClient::new(channel.clone()).get_node(with(GetNodeRequest::default(), token)).await)
}

async fn health(channel: &Channel, token: Option<&str>) -> Code {
    code(HealthClient::new(channel.clone()).check(with(HealthCheckRequest::default(), token)).await)
}

/// A call whose message never comes: who is not admitted is answered all the same.
async fn reflection(channel: &Channel, token: Option<&str>) -> Code {
    let nothing = with(tokio_stream::pending(), token);
    code(ServerReflectionClient::new(channel.clone()).server_reflection_info(nothing).await)
}

#[tokio::test]
async fn nobody_is_read_on_tcp_who_is_not_known() {
    let served = serve().await;
    let channel = served.channel(false).await;
    for token in [None, Some("bad")] {
        assert_eq!(inspector(&channel, token).await, Code::Unauthenticated, "{token:?}");
        assert_eq!(health(&channel, token).await, Code::Unauthenticated, "{token:?}");
        assert_eq!(reflection(&channel, token).await, Code::Unauthenticated, "{token:?}");
        assert_eq!(agent(&channel, token).await, Code::PermissionDenied, "{token:?}");
    }
    assert_eq!(inspector(&channel, Some(TOKEN)).await, Code::Unimplemented);
    assert_eq!(health(&channel, Some(TOKEN)).await, Code::Ok);
    assert_eq!(reflection(&channel, Some(TOKEN)).await, Code::Ok);
    assert_eq!(agent(&channel, Some(TOKEN)).await, Code::PermissionDenied);
    assert_eq!(served.reviews.load(Ordering::Relaxed), 4, "three of the bad one, one of the good one");
}

#[tokio::test]
async fn the_operator_is_known_by_its_certificate() {
    let served = serve().await;
    let channel = served.channel(true).await;
    assert_eq!(agent(&channel, None).await, Code::Unimplemented);
    assert_eq!(health(&channel, None).await, Code::Ok);
    assert_eq!(reflection(&channel, None).await, Code::Ok);
    assert_eq!(inspector(&channel, None).await, Code::Unauthenticated, "people look into programs");
    assert_eq!(served.reviews.load(Ordering::Relaxed), 0);
}

/// The body is of a type that nothing can be read from.
#[tokio::test]
async fn a_request_is_judged_by_its_head() {
    #[derive(Debug, PartialEq)]
    struct Unreadable;
    let (client, _) = api_server();
    let authorizer = Authorizer::new(Some(client));
    let request = |token: &str| {
        let request = Request::post("/skep.agent.v1.Inspector/DumpMap").header("authorization", token);
        request.body(Unreadable).unwrap()
    };
    for (header, expected) in
        [("Bearer good", Code::Ok), ("Bearer bad", Code::Unauthenticated), ("good", Code::Unauthenticated)]
    {
        assert_eq!(code(admit::admit(&authorizer, request(header)).await), expected, "{header}");
    }
}

#[tokio::test]
async fn idle_connections_keep_nobody_waiting() {
    let served = serve().await;
    let mut idle = Vec::new();
    for _ in 0..PER_SOURCE + 20 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(IpAddr::from([127, 0, 0, 2]), 0)).unwrap();
        idle.push(socket.connect(served.address).await.unwrap());
    }
    let start = Instant::now();
    let channel = served.channel(false).await;
    assert_eq!(health(&channel, Some(TOKEN)).await, Code::Ok);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    // The last ones had no place.
    let mut byte = [0];
    let last = idle.last().unwrap();
    tokio::time::timeout(Duration::from_secs(1), last.readable()).await.unwrap().unwrap();
    assert!(matches!(last.try_read(&mut byte), Ok(0) | Err(_)));
}
