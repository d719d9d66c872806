"""The streaming judge against the same metrics computed one image at a time, and the tables' layout."""

import json
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from small_judging import CONFIG, QUERIES, SPACING_M, RandomSet
from small_vigor import make_vigor

from unifygeo_ros.core.errors import InputError
from unifygeo_training.cli import main
from unifygeo_training.judging.judge import judge
from unifygeo_training.judging.pictures import (
    ANSWER,
    GAP_PX,
    GREEN,
    LARGE_PX,
    RED,
    TEXT_PX,
    TRUTH,
    draw_curve,
    draw_sheet,
)
from unifygeo_training.judging.tables import Ablation, ablation_report, read_json, report, to_json
from unifygeo_training.model import UnifyGeo

CVGL_LINES = ("LF-CVGL", "the paper")
THRESHOLDS_M = (1.0, 5.0, 10.0)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return UnifyGeo(CONFIG).eval()


@torch.inference_mode()
def one_at_a_time(network: UnifyGeo, data: RandomSet, k: int) -> dict[str, Any]:
    """The same numbers from the definitions, without batches, blocks, memory maps or FAISS."""
    aerial = [network.encode_aerial(torch.from_numpy(image[None])) for image in data._aerial]
    first, reranked_first, hits, metric = [], [], [], []
    errors = {"final": [], "without_reranking": [], "tile_centre": [], "retrieval_only": []}
    strict = {name: [] for name in errors}
    for query in range(QUERIES):
        ground = network.encode_ground(torch.from_numpy(data._ground[query][None]))
        similarity = np.array([float((ground.descriptor * a.descriptor).sum()) for a in aerial])
        best = np.argsort(-similarity)[:k]
        scores = {}
        for tile in best:
            cosine = torch.einsum("nchw,nc->nhw", aerial[tile].match_map.half().float(), ground.levels[0])
            scores[tile] = similarity[tile] + float(cosine.max())
        positive, semi = data.tiles[query, 0], set(data.tiles[query, 1:])
        winner = max(scores, key=scores.get)
        first.append(best[0] == positive)
        reranked_first.append(winner == positive)
        hits.append(next(t for t in np.argsort(-similarity) if t not in semi or t == positive) == positive)

        def answer(tile, ground=ground):
            logits = network.decode(ground.levels, aerial[tile].pyramid).logits[0].numpy()
            row, column = np.unravel_index(logits.argmax(), logits.shape)
            return np.array([(column - 15.5) * 1.0, (15.5 - row) * 1.0])  # 32 pixels of 1 m

        truth = data.offsets_m[query]
        metric.append(np.hypot(*(answer(positive) - truth)))
        for name, tile, offset in (
            ("final", winner, answer(winner)),
            ("without_reranking", best[0], answer(best[0])),
            ("tile_centre", winner, np.zeros(2)),
            ("retrieval_only", best[0], np.zeros(2)),
        ):
            error = np.hypot(*(offset + np.array([(tile - positive) * SPACING_M, 0]) - truth))
            errors[name].append(error)
            strict[name].append(error if tile == positive else np.inf)
    return {
        "first": 100 * np.mean(first),
        "reranked": 100 * np.mean(reranked_first),
        "hits": 100 * np.mean(hits),
        "mean": np.mean(metric),
        "geographic": {name: [100 * np.mean(np.array(e) <= t) for t in THRESHOLDS_M] for name, e in errors.items()},
        "strict": {name: [100 * np.mean(np.array(e) <= t) for t in THRESHOLDS_M] for name, e in strict.items()},
        "errors": errors,
    }


@pytest.mark.parametrize("batch", [1, 5])
def test_judge_agrees_with_one_image_at_a_time(network, tmp_path, batch):
    data = RandomSet()
    judgement = judge(network, data, tmp_path, candidates=4, batch=batch, workers=2)
    expected = one_at_a_time(network, data, 4)
    assert judgement.retrieval.recall_1 == pytest.approx(expected["first"])
    assert judgement.reranked.recall_1 == pytest.approx(expected["reranked"])
    assert judgement.retrieval.hit_rate == pytest.approx(expected["hits"])
    assert judgement.metric.mean_m == pytest.approx(expected["mean"], abs=1e-9)
    for name, wanted in expected["geographic"].items():
        scores = getattr(judgement, name)
        assert list(scores.geographic.values()) == pytest.approx(wanted), name
        assert list(scores.strict.values()) == pytest.approx(expected["strict"][name]), name
        np.testing.assert_allclose(judgement.results.errors_m[name], expected["errors"][name], atol=1e-6)
    # The four answers differ, so that none can stand in for another.
    assert len({tuple(np.round(e, 6)) for e in expected["errors"].values()}) == 4


def test_data_without_positions_is_judged_by_retrieval_alone(network, tmp_path):
    data = RandomSet()
    data.offsets_m = np.full((QUERIES, 2), np.nan)
    judgement = judge(network, data, tmp_path)
    assert judgement.metric is judgement.final is None
    assert "Metric" not in report(judgement, Ablation())


def test_tables_and_json_hold_the_same_numbers(network, tmp_path):
    judgement = judge(network, RandomSet(), tmp_path)
    text = report(judgement, Ablation())
    header, paper = (next(line for line in text.splitlines() if line.startswith(f"| {name}")) for name in CVGL_LINES)
    columns = [cell.strip() for cell in header.split("|")]
    published = dict(zip(columns, (cell.strip() for cell in paper.split("|")), strict=True))
    # The paper's numbers are strict ones, and stand nowhere else.
    assert (published["strict R@1m"], published["strict R@10m"]) == ("39.64", "81.37")
    assert published["R@1m"] == published["R@10m"] == ""
    assert f"{judgement.metric.median_m:.2f}" in text
    file = tmp_path / "judgement.json"
    file.write_text(to_json(judgement, "a.ckpt", Ablation(reranking_loss=False)))
    content = read_json(file)
    assert content["metric"]["mean_m"] == judgement.metric.mean_m
    table = ablation_report([content])
    assert table.count("| ✓  |  ✓ |") >= 4  # two rows each in Tables V and VII
    file.write_text(json.dumps({"format": "else"}))
    with pytest.raises(InputError, match="write it again"):
        read_json(file)


def judged(checkpoint, data, ablation, recalls, without):
    """A judgement as JSON holds it: `recalls` with re-ranking and `without` it, all else alike."""
    retrieval = {"recall_1": 50.0, "recall_5": 80.0, "recall_10": 90.0, "recall_percent": 70.0, "hit_rate": 60.0}
    return {
        "checkpoint": checkpoint,
        "data": data,
        "ablation": ablation,
        "retrieval": retrieval,
        "reranked": {"recall_1": 55.0, "hit_rate": 65.0},
        "metric": {"mean_m": 1.0, "median_m": 0.5},
        "final": {"strict": {"1.0": recalls}, "geographic": {"1.0": 99.0}},
        "without_reranking": {"strict": {"1.0": without}, "geographic": {"1.0": 98.0}},
        "tile_centre": {"strict": {"1.0": 1.25}, "geographic": {"1.0": 97.0}},
        "retrieval_only": {"strict": {"1.0": 0.25}, "geographic": {"1.0": 96.0}},
    }


def test_ablation_table_has_paper_order_means_and_paired_differences():
    attention, average = {"aggregator": "attention"}, {"aggregator": "average"}
    rows = [
        judged("ours", "town 1", {**attention, "reranking_loss": True}, 40.0, 30.0),
        judged("ours", "town 2", {**attention, "reranking_loss": True}, 60.0, 52.0),
        judged("average", "town 1", {**average, "reranking_loss": False}, 20.0, 10.0),
        judged("average", "town 2", {**average, "reranking_loss": False}, 30.0, 20.0),
    ]
    text = ablation_report(rows)
    means, differences = text.split("Table VII\n")[1].split("Table VII, each row less the row before it\n")
    assert [line.split("|")[5].strip() for line in means.splitlines()[2:6]] == ["15.00", "25.00", "41.00", "50.00"]
    assert [line.count("✓") for line in means.splitlines()[2:6]] == [1, 2, 3, 4]
    found = [line.split("|")[5].strip() for line in differences.splitlines()[2:]]
    assert found == ["+10.00 ± 0.00", "+16.00 ± 6.00", "+9.00 ± 1.00"]  # 10, 10; 10, 22; 10, 8
    assert "| ✓  |  - |       ✓ |   - | 55.00 | 80.00 |" in text  # R@5 is not changed by re-ranking
    with pytest.raises(InputError, match="judge all on the same data"):
        ablation_report(rows[:3])
    with pytest.raises(InputError, match="twice"):
        ablation_report([*rows, rows[0]])


def test_gem_without_attention_is_no_row_of_the_paper():
    """It stands between average pooling, the paper's network without FA, and attention, under its own name."""
    kinds = ("attention", "gem", "average")
    text = ablation_report([judged(kind, "town 1", {"aggregator": kind}, 40.0, 30.0) for kind in kinds])
    rows = [line.split("|")[1:3] for line in text.split("Table VI\n")[1].splitlines()[2:5]]
    assert [[cell.strip() for cell in row] for row in rows] == [["✓", "-"], ["✓", "GeM"], ["✓", "✓"]]


RETRIEVAL_ALONE = Ablation(localization=False, matching=False, reranking_loss=False, aggregator="average")
METRIC_ALONE = Ablation(retrieval=False, reranking_loss=False)


def test_ablation_table_leaves_out_what_a_network_was_not_trained_for():
    """Rows 1 and 2 of the paper: retrieval alone in V and VII (the tile's centre), metric localization alone in VI."""
    ours = judged("ours", "town 1", {}, 40.0, 30.0)
    retrieval = judged("retrieval", "town 1", vars(RETRIEVAL_ALONE), 88.0, 77.0)
    metric = judged("metric", "town 1", vars(METRIC_ALONE), 66.0, 55.0)
    text = ablation_report([metric, ours, retrieval])
    five, six_and_seven = text.split("Table VI\n")
    six, seven = six_and_seven.split("Table VII\n")
    unified = [
        [line.split("|")[1].strip() for line in part.splitlines() if line.startswith("| ")][1:]
        for part in (five, six, seven)
    ]
    assert unified == [["-", "✓", "✓"], ["-", "✓"], ["-", "✓", "✓"]]  # no row of what was not trained
    assert [line.split("|")[5].strip() for line in seven.splitlines()[2:5]] == ["0.25", "30.00", "40.00"]
    assert "their answer is the tile's centre" in seven
    for never in ("88.00", "77.00", "66.00", "55.00"):  # decoded by an untrained decoder, retrieved untrained
        assert never not in seven


@pytest.mark.parametrize(
    ("ablation", "named", "absent"),
    [
        (RETRIEVAL_ALONE, "retrieval only", ("this network |", "without re-ranking |  ", "Metric")),
        (METRIC_ALONE, "Metric localization", ("LF-CVGL", "R@1%")),
    ],
)
def test_untrained_parts_are_not_printed_as_results(network, tmp_path, ablation, named, absent):
    judgement = judge(network, RandomSet(), tmp_path)
    text = report(judgement, ablation)
    assert named in text
    assert "Left out, because no loss has trained it" in text
    table = text.split("Retrieval (Table II")[0] if ablation is RETRIEVAL_ALONE else text
    assert not [word for word in absent if word in table]
    content = json.loads(to_json(judgement, "a.ckpt", ablation))
    assert content["final"] is content["curve"] is content["without_reranking"] is None


def test_recall_curve_and_sheets_show_the_results(network, tmp_path):
    data = RandomSet()
    judgement = judge(network, data, tmp_path)
    errors, won = judgement.results.errors_m["final"], judgement.results.reranked[:, 0] == judgement.results.positives
    assert list(judgement.curve.strict) == list(range(1, 51))
    for metres in (1, 17, 50):
        assert judgement.curve.geographic[metres] == pytest.approx(100 * np.mean(errors <= metres))
        assert judgement.curve.strict[metres] == pytest.approx(100 * np.mean((errors <= metres) & won))
    draw_curve(judgement.curve, "noise", tmp_path / "curve.png")
    assert cv2.imread(str(tmp_path / "curve.png")).std() > 5
    query = 0
    sheet = draw_sheet(network, data, judgement.results, query)
    top = sheet[: sheet.shape[0] // 2]
    positive_is_candidate = data.tiles[query, 0] in judgement.results.nearest[query]
    assert bool((top == GREEN).all(axis=2).sum() > 1000) == positive_is_candidate
    assert (top == RED).all(axis=2).sum() > 1000


def middle_of(image, colour):
    """Row and column of the middle of what has a colour; None where nothing has."""
    rows, columns = np.nonzero((image == colour).all(axis=2))
    return ((rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2) if len(rows) else None


def test_sheet_marks_truth_and_answer_at_their_metres_on_each_tile(network, tmp_path):
    """The winner lies one tile east of the positive; the images show 32 m, so that each holds half of the other."""
    data = RandomSet()
    results = judge(network, data, tmp_path).results
    query, positive = 2, 4
    data.tiles[query, 0] = results.positives[query] = positive
    results.reranked[query, 0] = positive + 1
    truth_m, answer_m = np.array([2.5, 6.0]), np.array([-10.0, -4.0])  # from the centres of positive and winner
    data.offsets_m[query] = truth_m
    results.offsets_m["final"][query] = answer_m
    sheet = draw_sheet(network, data, results, query)
    bottom = len(sheet) - TEXT_PX - 2 * GAP_PX  # above the key
    for number, centre_m in enumerate(([SPACING_M, 0.0], [SPACING_M, 0.0], [0.0, 0.0])):  # from the positive's
        left = number * (LARGE_PX + GAP_PX)
        image = sheet[bottom - LARGE_PX : bottom, left : left + LARGE_PX]
        for colour, point_m in ((TRUTH, truth_m), (ANSWER, answer_m + np.array([SPACING_M, 0.0]))):
            east_m, north_m = point_m - centre_m
            expected = LARGE_PX / 2 - north_m * LARGE_PX / 32, LARGE_PX / 2 + east_m * LARGE_PX / 32
            assert middle_of(image, colour) == pytest.approx(expected, abs=1.0), (number, colour)


def test_commands_run_on_a_small_vigor(tmp_path, capsys):
    make_vigor(tmp_path)
    network = UnifyGeo(CONFIG)
    torch.save({"network": CONFIG.model_dump(), "model": network.state_dict()}, tmp_path / "a.ckpt")
    where = ["vigor-cross-area", str(tmp_path), "--labels", "original"]
    assert main(["test", str(tmp_path / "a.ckpt"), *where, "--sheets", "1"]) == 2
    out = tmp_path / "out"
    assert main(["check-data", *where, "--draw", "1", "--output", str(tmp_path / "drawn")]) == 0
    assert len(list((tmp_path / "drawn").iterdir())) == 2
    file = str(tmp_path / "a.json")
    extra = ["--output", str(out), "--sheets", "2", "--resize", "bilinear", "--missing", "skip"]
    assert (
        main(["test", str(tmp_path / "a.ckpt"), *where, "--json", file, "--device", "cpu", "--batch", "2", *extra]) == 0
    )
    assert np.load(out / "errors.npz")["final_errors_m"].shape == (2,)
    assert len(json.loads((out / "recall_curve.json").read_text())["strict"]) == 50
    assert len(list(out.glob("query_*.jpg"))) == 2
    assert main(["tables", file]) == 0
    printed = capsys.readouterr().out
    assert "VIGOR cross-area test (original labels): 2 queries, 4 tiles" in printed
    assert "Table VII" in printed
