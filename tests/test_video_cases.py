"""Eleven situations in which real files go wrong, and the tests that hold them and their siblings.

Each line of `CASES` is a kind of file: the test of the case itself, then tests of other files of
the kind, each as ``folder/module::test``. Every test generates its files.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CASES: dict[str, list[str]] = {
    "1. the picture begins later than the sound": [
        "video/test_clock::test_a_picture_that_begins_late",
        "video/test_clock::test_a_sound_that_begins_late_changes_nothing",
        "video/test_times::test_every_frame_is_the_one_that_is_shown",
        "video/test_cut_sync::test_flash_and_beep_stay_together",
        "video/test_cut_streams::test_a_moment_before_the_first_picture",
        "video/test_source::test_a_picture_that_begins_later_than_its_sound",
    ],
    "2. a gap, a restarted, a wrapped or a joined clock": [
        "video/test_clock::test_a_gap_keeps_the_times_behind_it",
        "video/test_clock::test_a_clock_that_begins_anew_goes_on",
        "video/test_clock::test_a_clock_that_wraps_goes_on",
        "video/test_clock::test_a_single_damaged_time_stamp_moves_nothing",
        "video/test_cut_clock::test_a_cut_is_on_the_clock_of_the_index",
        "video/test_damaged_videos::test_a_video_goes_on_behind_the_damage",
        "output/test_tables::test_findings_name_missing_parts",
    ],
    "3. two videos of one name": [
        "index/test_names::test_two_files_of_one_name_have_two_indexes",
        "index/test_names::test_names_of_other_case_or_composition_are_the_same",
        "index/test_names::test_a_rotated_name_keeps_to_the_path",
        "index/test_names::test_copies_of_one_name_share_an_index_and_others_do_not",
        "index/test_names::test_ids_are_unique_and_stable_whatever_happens",
        "index/test_relocation::test_a_folder_that_moved",
        "index/test_relocation::test_a_file_of_another_index_is_not_taken",
    ],
    "4. any file name": [
        "index/test_names::test_any_name_that_the_file_system_holds_is_the_name_of_a_video",
        "index/test_names::test_a_path_that_is_not_utf_8_is_read_back",
        "index/test_names::test_a_long_name_that_is_taken_is_cut",
        "index/test_names::test_an_index_is_found_by_id_name_or_path",
        "index/test_many_files::test_files_of_such_names_are_files",
    ],
    "5. a stream that nobody can read or copy": [
        "video/test_cut_streams::test_a_sound_track_that_nobody_can_read_is_named",
        "video/test_cut_streams::test_a_video_whose_only_sound_cannot_be_read_keeps_its_picture",
        "video/test_cut_streams::test_other_streams_are_named_and_left_out",
        "video/test_cut_streams::test_pictures_of_text_are_named",
        "video/test_cut_streams::test_damaged_sound_does_not_cost_the_picture",
        "video/test_cut_sources::test_a_cut_shows_what_the_source_shows",
    ],
    "6. time codes and rates": [
        "output/test_editors::test_a_camera_file_with_time_code",
        "video/test_source::test_the_time_code_of_the_first_frame",
        "video/test_source::test_the_time_code_inside_h264",
        "video/test_source::test_packets_correct_a_header",
        "video/test_source::test_a_variable_rate_is_said_once",
        "video/test_source::test_a_tag_that_is_no_time_code_is_ignored",
    ],
    "7. one bad file among many": [
        "index/test_many_files::test_bad_files_among_good_ones_cost_nothing_else",
        "index/test_many_files::test_the_command_names_what_it_could_not_index",
        "index/test_many_files::test_urls_pipes_and_empty_folders_are_named",
        "index/test_many_files::test_a_video_that_fails_in_the_middle_costs_only_itself",
        "index/test_relocation::test_what_cannot_be_relocated_is_named_and_stays",
    ],
    "8. HDR, range, aspect, interlacing": [
        "video/test_tone_mapping::test_a_graded_scene_looks_like_the_scene_in_sdr",
        "video/test_picture::test_matrix_and_range_as_ffmpeg_converts_them",
        "video/test_picture::test_pixels_that_are_not_square",
        "video/test_picture::test_an_interlaced_frame_shows_its_first_field",
        "video/test_frames::test_frames_stand_upright",
    ],
    "9. a library that is already indexed": [
        "index/test_known_files::test_an_unchanged_file_is_neither_read_nor_probed",
        "index/test_known_files::test_a_file_that_may_have_changed_is_read",
        "index/test_known_files::test_verify_reads_every_file",
        "index/test_known_files::test_a_resumed_run_does_not_read_its_files_again",
        "index/test_relocation::test_reading_is_reported",
    ],
    "10. containers with the order of decoding only": [
        "video/test_clock::test_avi_counts_frames_as_they_are_shown",
        "video/test_times::test_every_frame_is_the_one_that_is_shown",
        "video/test_cut_streams::test_an_exact_cut_has_the_frames_as_they_are_shown",
        "video/test_cut_sources::test_a_cut_shows_what_the_source_shows",
        "video/test_times::test_gif_delays_are_those_of_browsers",
    ],
    "11. WebM, and containers that do not take a codec": [
        "video/test_cut_streams::test_webm_takes_its_codecs",
        "video/test_cut_streams::test_the_container_of_a_cut_is_that_of_the_video",
        "video/test_cut_streams::test_an_exact_cut_encodes_sound_that_the_container_does_not_take",
        "video/test_cut_streams::test_one_of_two_sounds_fits",
        "video/test_cutting::test_a_codec_that_the_format_does_not_support",
    ],
}


@pytest.mark.parametrize("kind", CASES)
def test_every_kind_of_file_has_its_tests(kind: str) -> None:
    """The table names tests that exist: one for the case, and at least three for its siblings."""
    assert len(set(CASES[kind])) >= 4
    for name in CASES[kind]:
        module, test = name.split("::")
        text = (Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8")
        assert re.search(rf"def {test}\(", text), name
