//! Laboratory analysers at the real executable: a simulator that damages frames, kills between frames, strangers.
//!
//! What arrived is read where an operator would look for it: in the folder of an upstream, one file for each message.

mod device;
mod durability;
mod hostile;
mod results;
mod room;

use std::fs;
use std::path::Path;

use crate::support::gateway::Gateway;
use crate::support::wait::eventually_some;

/// A source that analysers dial, and a folder that takes everything.
fn lab_to_folder(folder: &Path) -> String {
    lab("listen = \"127.0.0.1:0\"", folder)
}

/// A source with this place of its analyser.
fn lab(place: &str, folder: &Path) -> String {
    let results = folder.join("results");
    fs::create_dir_all(&results).unwrap();
    format!(
        "[source.lab.astm]\n{place}\n\
         [upstream.folder.directory]\npath = \"{}\"\nunsealed = true\n\
         [[route]]\nfrom = [\"lab\"]\nto = [\"folder\"]\n",
        results.display()
    )
}

/// The bodies that arrived so far, in no order.
fn arrived(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder.join("results")).unwrap().map(|entry| entry.unwrap().path());
    let whole = entries.filter(|path| path.extension().is_some_and(|end| end == "astm" || end == "bin"));
    whole.map(|path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned()).collect()
}

/// The bodies, once there are so many at least and nothing waits any more.
#[track_caller]
fn all_arrived(gateway: &Gateway, folder: &Path, count: usize) -> Vec<String> {
    eventually_some("the messages arrive", || {
        let all = arrived(folder);
        (all.len() >= count && gateway.backlog() == 0).then_some(all)
    })
}
