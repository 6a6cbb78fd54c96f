"""Runs scripts/quality_tables on a few rows made by hand. Usage: quality_tables_test.py"""

import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import unittest

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "quality_tables")
sys.dont_write_bytecode = True
loader = importlib.machinery.SourceFileLoader("quality_tables", SCRIPT)
tables = importlib.util.module_from_spec(importlib.util.spec_from_loader("quality_tables", loader))
loader.exec_module(tables)


def kl_row(settings, text, blocks, budget=256, context=4096):
    return {**settings, "key": "%s %s %s" % (json.dumps(settings), text, budget), "measure": "kl", "budget": budget,
            "context": context, "model": tables.SMOLLM2 + ".gguf", "text": "texts/" + text + ".txt", "kl_blocks": blocks,
            "kl_mean": sum(blocks) / len(blocks), "top1_agreement": 0.9, "kv_bytes_read_per_token": 1024,
            "index_bytes_read_per_token": 1024}


class Tables(unittest.TestCase):
    def test_a_ratio_of_the_same_blocks_is_certain(self):
        ours = [0.01, 0.02, 0.03, 0.08]
        rows = [kl_row(tables.DEFAULT, "bible", ours),
                kl_row({**tables.DEFAULT, "n_tip": "4"}, "bible", [2 * x for x in ours])]
        base = tables.Kl(rows, tables.SMOLLM2, 4096, 256, tables.DEFAULT)
        other = tables.Kl(rows, tables.SMOLLM2, 4096, 256, {**tables.DEFAULT, "n_tip": "4"})
        self.assertEqual(tables.ratio(other, base), "2.00 [2.00, 2.00]")
        low, high = tables.interval([draw[0] for draw in tables.resampled([base], ["bible"])])
        self.assertLess(low, 0.035)
        self.assertGreater(high, 0.035)

    def test_an_interval_covers_95_percent(self):
        self.assertEqual(tables.interval(list(range(1000))), (25, 974))

    def test_texts_that_only_one_has_do_not_count(self):
        rows = [kl_row(tables.DEFAULT, "bible", [0.1, 0.1]), kl_row(tables.DEFAULT, "debian", [9.0, 9.0]),
                kl_row({"policy": "oracle", "dense_layers": 2}, "bible", [0.2, 0.2])]
        base = tables.Kl(rows, tables.SMOLLM2, 4096, 256, tables.DEFAULT)
        oracle = tables.Kl(rows, tables.SMOLLM2, 4096, 256, {"policy": "oracle"})
        self.assertEqual(tables.ratio(base, oracle), "0.50 [0.50, 0.50]")

    def test_the_default_follows_the_model(self):
        eight_bits = {**tables.DEFAULT, "index": "int8"}
        for model, settings in ((tables.SMOLLM2, tables.DEFAULT), (tables.GEMMA, eight_bits)):
            rows = [{**kl_row(one, "bible", [mean]), "model": model + ".gguf"}
                    for one, mean in ((tables.DEFAULT, 0.1), (eight_bits, 0.2))]
            text = tables.ablation_table(rows, model)
            self.assertIn("| the default | bible | %.4f" % (0.1 if settings is tables.DEFAULT else 0.2), text)
            self.assertEqual(text.count("bible"), 2)

    def test_a_policy_of_two_settings_has_one_by_budget(self):
        channels = {"policy": "channels", "dense_layers": 2, "n_tip": "50%", "index": "int4"}
        rows = [kl_row(channels, "bible", [0.1]), kl_row(channels, "bible", [0.05], budget=512),
                kl_row({**channels, "n_tip": "25%", "index": "int8"}, "bible", [0.7])]
        self.assertIn("| channels | - | 0.1000 | 0.0500 | - |", tables.budget_table(rows, tables.SMOLLM2))

    def test_rows_of_another_file_are_another_setting(self):
        elsewhere = {**kl_row({**tables.DEFAULT, "file": "kl_per_prompt"}, "bible", [0.3])}
        rows = [kl_row(tables.DEFAULT, "bible", [0.1]), elsewhere]
        self.assertEqual(tables.Kl(rows, tables.SMOLLM2, 4096, 256, tables.DEFAULT).mean(), 0.1)

    def test_an_ablation_changes_the_default_and_names_a_setting_once(self):
        former = {**tables.DEFAULT, **tables.FORMER}
        rows = [kl_row(tables.DEFAULT, "bible", [0.1]), kl_row(former, "bible", [0.2]),
                kl_row({**former, "sinks": 0}, "bible", [0.3]), kl_row({**tables.DEFAULT, "recent": 0}, "bible", [0.3])]
        text = tables.ablation_table(rows, tables.SMOLLM2)
        self.assertIn("| no recent | bible | 0.3000 [0.3000, 0.3000] | 3.00 [3.00, 3.00] |", text)
        self.assertIn("| one budget for all layers, ranked by variance | bible | 0.2000 [0.2000, 0.2000] | 2.00", text)
        self.assertNotIn("no sinks", text)
        self.assertEqual(text.count("0.1000"), 3)  # of the default alone, though int4 and N_tip 50% are it, too

    def test_answers_are_of_the_default(self):
        def answer(settings, task, score):
            return {**settings, "measure": "ruler", "task": task, "budget": 256, "context": 4096, "trials": 5,
                    "score_mean": score, "model": tables.SMOLLM2 + ".gguf"}
        former = {**tables.DEFAULT, **tables.FORMER}
        text = tables.answers_table([answer(former, "both", 0.2), answer(tables.DEFAULT, "both", 1), answer(former, "one", 0.4)])
        self.assertIn("| ruler both | 4096 | 5 of 5 |", text)
        self.assertNotIn("ruler one", text)

    def test_overlap(self):
        def profile(values):
            return {"layers": [{"measures": {"energy": [values]}}, {"measures": {}}]}
        self.assertEqual(tables.overlap(profile([4, 3, 2, 1]), profile([4, 1, 2, 3]), "energy", 0.5), 0.5)

    def test_documents_are_filled_again_and_again(self):
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "kl.jsonl"), "w") as file:
                file.write(json.dumps(kl_row(tables.DEFAULT, "bible", [0.1, 0.3])) + "\n")
            document = os.path.join(folder, "page.md")
            with open(document, "w") as file:
                file.write("before\n<!-- table kl-smollm2 -->\nold\n<!-- end -->\n<!-- table longform -->\n<!-- end -->\nafter\n")
            for _ in range(2):
                subprocess.run([SCRIPT, folder, folder, document], check=True)
                with open(document) as file:
                    page = file.read()
            self.assertNotIn("old", page)
            self.assertEqual(page.count("fasa, 50% of the FCs in int4: the default | 0.2000 |"), 1)
            self.assertIn("Not measured yet.", page)
            self.assertTrue(page.startswith("before\n") and page.endswith("after\n"))


if __name__ == "__main__":
    unittest.main()
