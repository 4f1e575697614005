use super::*;
use crate::fleet::{AgentPod, What};
use crate::testing::{program, report};
use k8s_openapi::jiff::Timestamp;
use kube::core::error_boundary::InvalidObject;
use serde_json::json;
use skep_crds::Reason;
use skep_proto::v1::{Node, State};

const DIGEST: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

struct World {
    index: Index,
    board: Arc<Board>,
    now: Instant,
}

impl World {
    /// Nodes a and b, each with an agent; all lists complete.
    fn new(programs: Vec<DeserializeGuard<EbpfProgram>>) -> Self {
        let (board, now) = (Arc::new(Board::default()), Instant::now());
        let mut world = World { index: Index::new(board.clone(), BTreeMap::new(), now), board, now };
        world.handle(Event::ProgramsBegin);
        for program in programs {
            world.handle(Event::Program(Box::new(program)));
        }
        world.handle(Event::ProgramsEnd);
        let facts = |name: &str| (name.to_string(), NodeFacts { uid: name.into(), ..NodeFacts::default() });
        world.handle(Event::Nodes { changed: [facts("a"), facts("b")].into(), gone: vec![] });
        world.handle(Event::NodesEnd);
        world.agents(&["a", "b"]);
        world
    }

    fn handle(&mut self, event: Event) {
        self.index.handle(event, self.now);
    }

    fn agents(&mut self, names: &[&str]) {
        let pod = |name: &&str| {
            let address = std::net::Ipv4Addr::LOCALHOST.into();
            let (node, namespace) = (name.to_string(), "skep-system".to_string());
            (node.clone(), AgentPod { node, namespace, service_account: "agent".into(), uid: "u".into(), address })
        };
        self.handle(Event::Agents(names.iter().map(pod).collect()));
    }

    fn news(&mut self, node: &str, what: What) {
        self.handle(Event::News(News { node: node.into(), what }));
    }

    fn connected(&mut self, node: &str) {
        self.news(node, What::Connected(Box::new(Node { node_name: node.into(), ..Node::default() })));
        self.news(node, What::Snapshot(vec![]));
    }

    fn resolve(&mut self) -> Vec<Request> {
        let requests = self.index.take_requests();
        for request in &requests {
            let reference = request.image.reference.clone();
            let answer = Resolution { reference, digest: DIGEST.into(), credentials: vec![], missing: vec![] };
            self.handle(Event::Image(Box::new(request.clone()), Ok(answer)));
        }
        requests
    }

    /// Does all chores, successfully.
    fn chores(&mut self) -> Vec<Chore> {
        let mut done = vec![];
        while let Some(key) = self.index.dirty.pop_first() {
            if let Some(chore) = self.index.chore(&key, self.now, Timestamp::UNIX_EPOCH) {
                done.push(chore.clone());
                self.index.done(&key, chore, true, self.now);
            }
        }
        done
    }

    fn wanted(&self, node: &str) -> crate::fleet::Wanted {
        self.board.subscribe(node).0.borrow().clone()
    }
}

fn readable(name: &str) -> DeserializeGuard<EbpfProgram> {
    DeserializeGuard(Ok(program(name)))
}

fn last_status(chores: &[Chore]) -> EbpfProgramStatusAndNote {
    chores
        .iter()
        .rev()
        .find_map(|chore| match chore {
            Chore::Status { status, note, .. } => Some((status.summary.clone().unwrap(), note.clone())),
            _ => None,
        })
        .unwrap()
}

type EbpfProgramStatusAndNote = (skep_crds::status::Summary, Option<Note>);

#[test]
fn a_program_goes_onto_its_nodes_and_its_status_follows_their_reports() {
    let mut world = World::new(vec![readable("flows")]);
    assert!(world.wanted("a").complete);
    assert_eq!(world.wanted("a").programs["uid-flows"], None, "it is meant for the node, and not known how yet");
    assert_eq!(world.resolve().len(), 1);
    let order = world.wanted("a").programs["uid-flows"].clone().unwrap();
    world.connected("a");
    world.connected("b");
    let (summary, _) = last_status(&world.chores());
    assert_eq!((summary.ready.as_str(), summary.reason), ("0/2", Reason::WaitingForNode));
    let ready = report(&order.revision, State::Ready, "Ready", "");
    world.news("a", What::Report(Box::new(ready.clone())));
    world.news("b", What::Report(Box::new(ready)));
    let (summary, note) = last_status(&world.chores());
    assert_eq!((summary.ready.as_str(), summary.reason), ("2/2", Reason::Ready));
    assert_eq!(note, Some(Note { warning: false, reason: Reason::Ready, message: "runs on 2 nodes".into() }));
    world.index.all_dirty();
    assert_eq!(world.chores(), [], "nothing changed");
}

#[test]
fn nothing_goes_onto_a_node_before_the_finalizer_is_there() {
    let mut new = program("flows");
    new.metadata.finalizers = None;
    let mut world = World::new(vec![DeserializeGuard(Ok(new))]);
    world.resolve();
    assert_eq!(world.wanted("a").programs["uid-flows"], None);
    let chores = world.chores();
    assert!(matches!(&chores[0], Chore::Finalizers { finalizers, .. } if finalizers == &["skep.dev/cleanup"]));
    assert!(world.wanted("a").programs["uid-flows"].is_some());
}

#[test]
fn a_digest_that_was_resolved_is_used_again_after_a_restart() {
    let mut known = program("flows");
    let image = json!({"image": {"reference": known.spec.image.reference, "digest": DIGEST}});
    known.status = serde_json::from_value(image).unwrap();
    let mut world = World::new(vec![DeserializeGuard(Ok(known.clone()))]);
    assert_eq!(world.resolve()[0].known.as_deref(), Some(DIGEST));
    known.metadata.generation = Some(2);
    world.handle(Event::Program(Box::new(DeserializeGuard(Ok(known.clone())))));
    assert_eq!(world.resolve(), [], "a change of something else asks nobody");
    known.spec.image.reference = "registry.example.com/ebpf/flows:v3".into();
    world.handle(Event::Program(Box::new(DeserializeGuard(Ok(known)))));
    assert_eq!(world.resolve()[0].known, None);
}

#[test]
fn a_deletion_waits_for_the_nodes_that_can_be_reached() {
    let mut world = World::new(vec![readable("flows")]);
    world.resolve();
    world.connected("a");
    world.news("b", What::Unreachable("refused".into()));
    world.chores();
    let mut gone = program("flows");
    gone.metadata.deletion_timestamp = serde_json::from_value(json!("2024-01-01T00:00:00Z")).unwrap();
    world.handle(Event::Program(Box::new(DeserializeGuard(Ok(gone)))));
    assert!(world.wanted("a").programs.is_empty() && world.wanted("a").removing.contains("uid-flows"));
    let finalizers = |chores: &[Chore]| chores.iter().any(|chore| matches!(chore, Chore::Finalizers { .. }));
    assert!(!finalizers(&world.chores()));
    world.news("a", What::Gone("uid-flows".into()));
    assert!(world.wanted("a").removing.is_empty());
    let chores = world.chores();
    let Some(Chore::Note { note, .. }) = chores.first() else { panic!("first it is said: {chores:?}") };
    assert_eq!((note.warning, note.reason), (true, Reason::NodeUnreachable));
    assert!(note.message.contains("not confirmed by b:"), "{}", note.message);
    assert!(finalizers(&chores), "the unreachable node does not hold it");
    world.handle(Event::ProgramGone("uid-flows".into()));
    assert!(world.wanted("b").removing.contains("uid-flows"), "it cleans up when it is back");
}

#[test]
fn a_deletion_does_not_wait_for_ever() {
    let mut gone = program("flows");
    gone.metadata.deletion_timestamp = serde_json::from_value(json!("2024-01-01T00:00:00Z")).unwrap();
    let mut world = World::new(vec![DeserializeGuard(Ok(gone))]);
    world.connected("a");
    assert!(world.wanted("a").removing.contains("uid-flows"), "a restarted operator asks all nodes");
    assert!(!world.chores().iter().any(|chore| matches!(chore, Chore::Finalizers { .. })));
    world.now += DELETION;
    let dirty = world.index.take_dirty(world.now);
    world.index.dirty.extend(dirty);
    let chores = world.chores();
    assert!(
        matches!(&chores[..], [Chore::Note { note, .. }, Chore::Finalizers { .. }] if note.message.contains(" a, b:"))
    );
}

#[test]
fn a_deletion_that_every_node_confirmed_needs_no_word() {
    let mut world = World::new(vec![readable("flows")]);
    world.resolve();
    ["a", "b"].iter().for_each(|node| world.connected(node));
    world.chores();
    let mut gone = program("flows");
    gone.metadata.deletion_timestamp = serde_json::from_value(json!("2024-01-01T00:00:00Z")).unwrap();
    world.handle(Event::Program(Box::new(DeserializeGuard(Ok(gone)))));
    ["a", "b"].iter().for_each(|node| world.news(node, What::Gone("uid-flows".into())));
    assert!(matches!(world.chores().as_slice(), [Chore::Finalizers { .. }]));
}

#[test]
fn what_cannot_be_decoded_stays_as_it_is() {
    let bad = |uid: &str| {
        let metadata = serde_json::from_value(json!({"name": uid, "namespace": "net", "uid": uid})).unwrap();
        DeserializeGuard(Err(InvalidObject { error: "missing field `image`".into(), metadata }))
    };
    let mut world = World::new(vec![readable("flows"), bad("odd")]);
    world.resolve();
    assert!(world.wanted("a").unreadable.contains("odd"));
    assert!(world.chores().iter().any(|chore| matches!(chore, Chore::Unreadable { .. })));
    let before = world.wanted("a").programs;
    world.handle(Event::Program(Box::new(bad("uid-flows"))));
    world.agents(&["a"]);
    world.agents(&["a", "b"]);
    assert_eq!(world.wanted("a").programs, before);
    assert!(world.wanted("a").unreadable.contains("uid-flows") && world.wanted("b").removing.is_empty());
}

#[test]
fn what_kubectl_emptied_stays_as_it_is_and_says_which_field() {
    let mut world = World::new(vec![readable("flows")]);
    world.resolve();
    let before = world.wanted("a").programs;
    let mut emptied = program("flows");
    let applied = json!({"spec": {"nodeSelector": null}}).to_string();
    emptied.metadata.annotations =
        Some([("kubectl.kubernetes.io/last-applied-configuration".to_owned(), applied)].into());
    world.handle(Event::Program(Box::new(DeserializeGuard(Ok(emptied)))));
    assert_eq!(world.wanted("a").programs, before);
    assert!(world.wanted("a").unreadable.contains("uid-flows"));
    let said = world.chores().into_iter().find_map(|chore| match chore {
        Chore::Unreadable { note, .. } => Some(note.message),
        _ => None,
    });
    assert!(said.is_some_and(|text| text.starts_with("spec.nodeSelector was applied without a value")));
}

#[test]
fn what_a_node_says_of_a_deleted_program_is_written_before_it_goes() {
    let mut world = World::new(vec![readable("flows")]);
    world.resolve();
    world.connected("a");
    world.connected("b");
    world.chores();
    let mut gone = program("flows");
    gone.metadata.deletion_timestamp = serde_json::from_value(json!("2024-01-01T00:00:00Z")).unwrap();
    world.handle(Event::Program(Box::new(DeserializeGuard(Ok(gone)))));
    let notice = skep_proto::v1::Notice {
        uid: "uid-flows".into(),
        warning: true,
        reason: "Timeout".into(),
        message: "removed, but for what others hold".into(),
    };
    world.news("a", What::Notice(notice));
    world.news("a", What::Gone("uid-flows".into()));
    world.news("b", What::Gone("uid-flows".into()));
    let chores = world.chores();
    assert!(matches!(&chores[0], Chore::Note { note, .. } if note.message.contains("others hold")), "{chores:?}");
    assert!(matches!(&chores[1], Chore::Finalizers { .. }), "{chores:?}");
}

#[test]
fn a_list_again_shows_what_is_gone() {
    let mut world = World::new(vec![readable("flows"), readable("old")]);
    world.resolve();
    world.handle(Event::ProgramsBegin);
    world.handle(Event::Program(Box::new(readable("flows"))));
    assert_eq!(world.wanted("a").programs.len(), 2, "not before the list is complete");
    world.handle(Event::ProgramsEnd);
    assert_eq!(world.wanted("a").programs.keys().collect::<Vec<_>>(), ["uid-flows"]);
}

#[test]
fn secrets_are_read_again_after_a_node_was_refused() {
    let mut private = program("flows");
    private.spec.image.pull_secrets = serde_json::from_value(json!([{"name": "regcred"}])).unwrap();
    let mut world = World::new(vec![DeserializeGuard(Ok(private))]);
    world.resolve();
    world.connected("a");
    let revision = world.wanted("a").programs["uid-flows"].clone().unwrap().revision.clone();
    world.chores();
    world.news("a", What::Report(Box::new(report(&revision, State::Failed, "ImageUnauthorized", "refused"))));
    world.chores();
    assert_eq!(world.index.take_requests(), [], "not at once");
    world.now += Duration::from_secs(10);
    let dirty = world.index.take_dirty(world.now);
    world.index.dirty.extend(dirty);
    world.chores();
    let requests = world.index.take_requests();
    assert_eq!((requests.len(), requests[0].known.as_deref()), (1, Some(DIGEST)));
    let credentials = vec![skep_proto::v1::RegistryCredential::default()];
    let reference = requests[0].image.reference.clone();
    let answer = Resolution { reference, digest: DIGEST.into(), credentials, missing: vec![] };
    world.handle(Event::Image(Box::new(requests[0].clone()), Ok(answer)));
    assert_eq!(world.wanted("a").programs["uid-flows"].clone().unwrap().credentials.len(), 1);
    let again = (world.now + Duration::from_secs(20), Key::Image("uid-flows".into()));
    assert!(world.index.later.contains(&again), "and again, as long as it is refused");
}

#[test]
fn a_secret_that_is_missing_is_said_and_looked_for_again() {
    let mut private = program("flows");
    private.spec.image.pull_secrets = serde_json::from_value(json!([{"name": "regcred"}])).unwrap();
    let mut world = World::new(vec![DeserializeGuard(Ok(private))]);
    ["a", "b"].iter().for_each(|node| world.connected(node));
    world.chores();
    let mut requests = world.index.take_requests();
    let answer = |request: &Request, missing: &[&str]| Resolution {
        reference: request.image.reference.clone(),
        digest: DIGEST.into(),
        credentials: vec![],
        missing: missing.iter().map(|text| text.to_string()).collect(),
    };
    for first in [true, false] {
        let missing = answer(&requests[0], &["pull secret regcred: there is none of that name"]);
        world.handle(Event::Image(Box::new(requests[0].clone()), Ok(missing)));
        let chores = world.chores();
        let said = chores.iter().filter(|chore| {
            matches!(chore, Chore::Note { note, .. } if note.warning && note.reason == Reason::ImageUnauthorized
                && note.message.starts_with("pull secret regcred: there is none"))
        });
        assert_eq!(said.count(), usize::from(first), "once: {chores:?}");
        world.now += Duration::from_secs(120);
        let dirty = world.index.take_dirty(world.now);
        world.index.dirty.extend(dirty);
        world.chores();
        requests = world.index.take_requests();
        assert_eq!((requests.len(), requests[0].known.as_deref()), (1, Some(DIGEST)));
    }
    let revision = world.wanted("a").programs["uid-flows"].clone().unwrap().revision.clone();
    for node in ["a", "b"] {
        world.news(node, What::Report(Box::new(report(&revision, State::Ready, "Ready", ""))));
    }
    let (_, note) = last_status(&world.chores());
    let text = "runs on 2 nodes; pull secret regcred: there is none of that name";
    assert_eq!(note.map(|note| note.message).as_deref(), Some(text));
    world.handle(Event::Image(Box::new(requests[0].clone()), Ok(answer(&requests[0], &[]))));
    world.chores();
    world.now += Duration::from_secs(600);
    assert!(!world.index.take_dirty(world.now).contains(&Key::Image("uid-flows".into())), "it is there: nobody asks");
}
