//! Listings that lack a name.

use super::fault_disk::{Cut, Effect, Errno, Op};
use super::world::World;

/// The next life's first listing of the type's folder lacks its one entry with this ending.
fn leave_out_once(world: &World, ending: &'static str) {
    let mut left_out = false;
    world.disk.rule(move |op, path| {
        let leave_out = !left_out && op == Op::Entry && path.to_string_lossy().ends_with(ending);
        left_out |= leave_out;
        if leave_out { Effect::Fail(Errno::NOENT) } else { Effect::Pass }
    });
}

#[test]
fn a_listing_that_lacks_a_name_gives_no_number_out_twice_and_hides_no_batch() {
    for ending in [".sealed", ".open"] {
        let mut world = World::opened();
        world.append(2).unwrap();
        world.seal();
        world.append(1).unwrap();
        world.crash_without_opening(Cut::Kill);
        leave_out_once(&world, ending);
        world.open().unwrap();
        world.append(1).unwrap();
        world.deliver_all();
        assert_eq!((world.missing(), world.bucket.len()), (0, 3), "without the {ending} file");
    }
}

#[test]
fn a_folder_whose_listings_never_agree_ends_the_start_and_is_named() {
    let mut world = World::opened();
    world.append(2).unwrap();
    world.crash_without_opening(Cut::Kill);
    let mut entries = 0;
    world.disk.rule(move |op, path| {
        entries += u32::from(op == Op::Entry && path.to_string_lossy().ends_with(".open"));
        if op == Op::Entry && entries % 2 == 0 { Effect::Fail(Errno::NOENT) } else { Effect::Pass }
    });
    let refusal = world.open().unwrap_err().to_string();
    assert!(refusal.contains("env0-deployments") && refusal.contains("listings of the folder differ"), "{refusal}");
    world.disk.heal();
    world.open().unwrap();
    world.deliver_all();
}
