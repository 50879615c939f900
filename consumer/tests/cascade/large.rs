//! Large values on their way through a branch, which stores the events and applies them.

use crate::tree::Tree;

#[tokio::test]
async fn large_values_pass_through_a_branch() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    let branch = tree.add("branch", "branch", "root").await;
    let leaf = tree.add("leaf", "leaf", "branch").await;
    for name in ["branch", "leaf"] {
        tree.catch_up(name).await;
    }
    root.run("insert into journal select -i, repeat('a %', 10000000) from generate_series(1, 3) i")
        .await;
    for name in ["branch", "leaf"] {
        let output = tree.catch_up(name).await;
        // In the queue they are of 50 MB.
        println!("{name}: peak resident memory {} kB", output.peak_kb);
        assert!(output.peak_kb < (64 + 4 * 50) * 1024, "{name}: {} kB", output.peak_kb);
    }
    let queue = "select ev_id, ev_type, md5(ev_data) from pgq.event_template where octet_length(ev_data) > 50000000 order by ev_id";
    let events = root.text(queue).await;
    assert_eq!((events.lines().count(), branch.text(queue).await), (3, events));
    let rows = "select uid, length(what), md5(what) from journal where uid < 0 order by uid";
    for node in [&branch, &leaf] {
        assert_eq!(node.text(rows).await, root.text(rows).await);
    }
    tree.drop(&["leaf", "branch", "root"]).await;
}
