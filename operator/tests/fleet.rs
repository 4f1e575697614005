#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says by panicking what is wrong")]
//! The fleet against an agent in this process, over real TLS: trust, order of calls, differences only, reconnecting.

mod fake;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fake::State;
use k8s_openapi::api::authentication::v1::TokenReviewStatus;
use serde_json::json;
use skep_operator::certs::Authority;
use skep_operator::fleet::{AgentPod, Agents, Board, Context, News, Order, What, run};
use skep_operator::token::Review;
use skep_proto::v1::Pod;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const EPOCH: u64 = 7;

struct Cluster {
    agent: Arc<State>,
    address: SocketAddr,
    server: Option<fake::Server>,
    authority: Authority,
    board: Arc<Board>,
    news: mpsc::Receiver<News>,
    _agents: watch::Sender<Agents>,
    _tasks: JoinSet<()>,
}

/// One node n1 with an agent, whose token the API server says is of the pod `reviewed`.
async fn cluster(reviewed: &'static str, prepare: impl FnOnce(&State, &Board)) -> Cluster {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let authority = Authority::generate(SystemTime::now()).unwrap();
    let (agent, board) = (State::new("n1"), Arc::new(Board::default()));
    prepare(&agent, &board);
    let (address, server) = fake::serve(agent.clone(), ANY, authority.certificate()).await;
    let (reviews, mut asked) = mpsc::channel::<Review>(4);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Some(review) = asked.recv().await {
            assert_eq!(review.token, "the token");
            review.answer.send(Ok(token_of(reviewed))).unwrap();
        }
    });
    let context = Context::new(authority.clone(), EPOCH, address.port(), reviews).unwrap();
    let pod = AgentPod {
        node: "n1".into(),
        namespace: "skep-system".into(),
        service_account: "skep-agent".into(),
        uid: "pod-1".into(),
        address: address.ip(),
    };
    let (agents, known) = watch::channel(Agents::from([("n1".to_string(), pod)]));
    let (sender, news) = mpsc::channel(64);
    tasks.spawn(run(Arc::new(context), known, board.clone(), sender));
    Cluster { agent, address, server: Some(server), authority, board, news, _agents: agents, _tasks: tasks }
}

fn token_of(pod: &str) -> TokenReviewStatus {
    serde_json::from_value(json!({
        "authenticated": true, "audiences": ["skep-operator"],
        "user": {
            "username": "system:serviceaccount:skep-system:skep-agent",
            "extra": {
                "authentication.kubernetes.io/node-name": ["n1"],
                "authentication.kubernetes.io/pod-uid": [pod],
            },
        },
    }))
    .unwrap()
}

fn order(uid: &str, revision: &str) -> Option<Arc<Order>> {
    let (uid, revision) = (uid.to_string(), revision.to_string());
    Some(Arc::new(Order { uid, revision, generation: 1, ..Order::default() }))
}

fn want(board: &Board, uid: &str, order: Option<Arc<Order>>) {
    board.wanted("n1", |wanted| {
        wanted.programs.insert(uid.into(), order);
        true
    });
}

fn complete(board: &Board) {
    board.wanted("n1", |wanted| !std::mem::replace(&mut wanted.complete, true));
}

impl Cluster {
    /// Waits for the news that `is` looks for.
    async fn until(&mut self, is: impl Fn(&What) -> bool) -> What {
        let found = async {
            loop {
                let news = self.news.recv().await.unwrap();
                if is(&news.what) {
                    return news.what;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), found).await.expect("the news should come")
    }

    async fn reported(&mut self, uid: &str, revision: &str) {
        let is = |what: &What| matches!(what, What::Report(r) if r.uid == uid && r.desired_revision == revision);
        self.until(is).await;
    }

    async fn restart(&mut self) {
        self.server = None;
        let (_, server) = fake::serve(self.agent.clone(), self.address, self.authority.certificate()).await;
        self.server = Some(server);
    }
}

#[tokio::test]
async fn an_agent_enrols_and_is_told_what_differs() {
    let mut cluster = cluster("pod-1", |agent, board| {
        for uid in ["same", "old", "extra", "odd"] {
            agent.put(uid, "r1");
        }
        want(board, "same", order("same", "r1"));
        want(board, "old", order("old", "r2"));
        want(board, "unknown", None);
        board.wanted("n1", |wanted| {
            wanted.unreadable = Arc::new(["odd".to_string()].into());
            true
        });
        board.pods("n1", |pods| {
            pods.pods.insert("p1".into(), Arc::new(Pod { uid: "p1".into(), name: "web".into(), ..Pod::default() }));
            true
        });
        board.pods_complete();
        complete(board);
    })
    .await;
    cluster.until(|what| matches!(what, What::Connected(_))).await;
    cluster.reported("old", "r2").await;
    assert_eq!(
        cluster.agent.calls(),
        [
            "begin n1",
            "install",
            "begin n1",
            "pods snapshot true web gone ",
            "sync old,same,unknown unreadable odd epoch 7",
            "apply old r2 epoch 7",
        ]
    );
    assert!(cluster.agent.programs.lock().unwrap().contains_key("odd"), "what cannot be decoded stays");

    cluster.agent.calls.lock().unwrap().clear();
    want(&cluster.board, "new", order("new", "r1"));
    cluster.reported("new", "r1").await;
    cluster.board.wanted("n1", |wanted| wanted.programs.remove("new").is_some() | wanted.removing.insert("new".into()));
    cluster.until(|what| *what == What::Gone("new".into())).await;
    cluster.board.wanted("n1", |wanted| wanted.removing.remove("new"));
    want(&cluster.board, "refused", order("refused", "r1"));
    let refused = cluster.until(|what| matches!(what, What::Report(report) if report.uid == "refused")).await;
    let What::Report(refused) = refused else { unreachable!() };
    assert_eq!((refused.reason.as_str(), refused.message.as_str()), ("AgentTooOld", "this kind is not known"));
    assert_eq!(
        cluster.agent.calls(),
        ["apply new r1 epoch 7", "remove new epoch 7", "apply refused r1 epoch 7"],
        "nothing is said twice"
    );
}

#[tokio::test]
async fn nothing_is_told_before_all_programs_are_known() {
    let mut cluster = cluster("pod-1", |agent, board| {
        agent.put("a", "r1");
        want(board, "b", order("b", "r1"));
    })
    .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(cluster.agent.calls(), ["begin n1", "install", "begin n1"]);
    want(&cluster.board, "a", None);
    complete(&cluster.board);
    cluster.reported("b", "r1").await;
    let told = ["sync a,b unreadable  epoch 7", "apply b r1 epoch 7"];
    assert_eq!(cluster.agent.calls()[3..], told, "a is kept as it is");
}

#[tokio::test]
async fn a_lost_connection_is_made_again_and_nothing_is_told_twice() {
    let mut cluster = cluster("pod-1", |_, board| {
        want(board, "a", order("a", "r1"));
        complete(board);
    })
    .await;
    cluster.reported("a", "r1").await;
    cluster.agent.calls.lock().unwrap().clear();
    cluster.restart().await;
    let snapshot = cluster.until(|what| matches!(what, What::Snapshot(_))).await;
    let What::Snapshot(reports) = snapshot else { unreachable!() };
    assert_eq!(reports.len(), 1);
    want(&cluster.board, "b", order("b", "r1"));
    cluster.reported("b", "r1").await;
    let calls = ["begin n1", "sync a unreadable  epoch 7", "apply b r1 epoch 7"];
    assert_eq!(cluster.agent.calls(), calls, "and the certificate still serves");
}

#[tokio::test]
async fn a_certificate_is_renewed_when_a_third_of_its_time_is_left_and_the_connection_goes_on() {
    let mut cluster = cluster("pod-1", |_, board| {
        want(board, "a", order("a", "r1"));
        complete(board);
    })
    .await;
    cluster.reported("a", "r1").await;
    let first = cluster.agent.identity.serving();
    // As if the day were nearly two thirds over.
    let third = jiff::SignedDuration::from_hours(8) + jiff::SignedDuration::from_secs(2);
    *cluster.agent.not_after.lock().unwrap() = (jiff::Timestamp::now() + third).to_string();
    cluster.restart().await;
    cluster.until(|what| matches!(what, What::Snapshot(_))).await;
    assert_eq!(cluster.agent.identity.serving(), first, "not yet");
    cluster.agent.calls.lock().unwrap().clear();
    let renewed = async {
        while cluster.agent.calls() != ["begin n1", "install"] {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), renewed).await.expect("the certificate should be renewed");
    assert_ne!(cluster.agent.identity.serving(), first, "another certificate serves");
    want(&cluster.board, "b", order("b", "r1"));
    cluster.reported("b", "r1").await;
    assert_eq!(cluster.agent.calls(), ["begin n1", "install", "apply b r1 epoch 7"], "on the same connection");
}

#[tokio::test]
async fn whoever_has_not_the_pods_token_gets_no_certificate_and_no_orders() {
    let mut cluster = cluster("another pod", |_, board| {
        want(board, "a", order("a", "r1"));
        complete(board);
    })
    .await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let calls = cluster.agent.calls();
    assert!(calls.len() >= 2 && calls.iter().all(|call| call == "begin n1"), "{calls:?}");
    assert!(cluster.news.try_recv().is_err());
}

#[tokio::test]
async fn a_deposed_leader_is_refused_and_changes_nothing() {
    let mut cluster = cluster("pod-1", |agent, board| {
        *agent.lowest_epoch.lock().unwrap() = EPOCH + 1;
        agent.put("a", "r1");
        complete(board);
    })
    .await;
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert!(cluster.agent.programs.lock().unwrap().contains_key("a"));
    assert!(cluster.news.try_recv().is_err(), "a node that refuses is not connected");
}
