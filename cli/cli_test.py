"""Runs the program `fasa` as people do. Usage: cli_test.py FASA MODEL WORK_DIR CASE"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import unittest
import urllib.error
import urllib.request

FASA, MODEL, WORK, CASE = sys.argv[1:5]
os.environ["FASA_CACHE_DIR"] = os.path.join(WORK, "cache-" + CASE)
PROFILE = os.path.join(WORK, "model.fasa.json")
TEXT = os.path.join(WORK, "text.txt")
COMMON = ["-m", MODEL, "--profile", PROFILE, "--threads", "2"]


def make_text():
    """Varied English, long enough for the small contexts used here, the same at each run."""
    words = ("the river a mountain old house quiet sea letter king winter road stone garden "
             "light window story child door ship north evening bread silver song").split()
    verbs = "sees finds leaves remembers crosses follows paints answers".split()
    state, lines = 7, []
    for i in range(400):
        pick = []
        for choices in (words, verbs, words, words):
            state = (state * 1103515245 + 12345) % (1 << 31)
            pick.append(choices[(state >> 8) % len(choices)])
        lines.append("In chapter %d the %s %s the %s near the %s." % ((i,) + tuple(pick)))
    with open(TEXT, "w") as file:
        file.write("\n".join(lines))


def fasa(*arguments, env=None, timeout=110, stdin=""):
    return subprocess.run([FASA, *map(str, arguments)], capture_output=True, text=True,
                          timeout=timeout, input=stdin, env={**os.environ, **(env or {})})


class Base(unittest.TestCase):
    def succeed(self, *arguments, **options):
        result = fasa(*arguments, **options)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result

    def refuse(self, part, *arguments, **options):
        """Fails with one sentence on stderr that has `part` in it, and nothing on stdout."""
        result = fasa(*arguments, **options)
        self.assertEqual(result.returncode, 1, result.stdout + result.stderr)
        lines = [line for line in result.stderr.splitlines() if line.startswith("fasa: ")]
        self.assertEqual(len(lines), 1, result.stderr)
        self.assertIn(part, lines[0])
        self.assertEqual(result.stdout, "")

    def rows(self, *arguments):
        return [json.loads(line) for line in self.succeed(*arguments).stdout.splitlines()]


class Setup(Base):
    def test_calibrate(self):
        os.makedirs(WORK, exist_ok=True)
        make_text()
        self.succeed("calibrate", "-m", MODEL, "--text", TEXT, "-o", PROFILE, "--context", 512,
                     "--windows", 1, "--queries", 16, "--threads", 2)


class Help(Base):
    def test_every_command_teaches(self):
        evaluations = ["ca", "kl", "needle", "passkey", "ruler", "recall", "longform", "tasks", "report"]
        for command in ([["eval", name] for name in evaluations] +
                        [["run"], ["bench"], ["serve"], ["calibrate"], ["inspect"], ["eval"], []]):
            text = self.succeed(*command, "--help").stdout
            self.assertIn("Example", text, command)
        self.assertRegex(self.succeed("--version").stdout, r"^fasa \d+\.\d+")

    def test_usage_errors(self):
        for arguments in ([], ["nonsense"], ["bench", "--depth", "x"], ["eval", "kl"]):
            result = fasa(*arguments)
            self.assertNotIn(result.returncode, (0, 1), arguments)
            self.assertIn("--help", result.stderr)


class Errors(Base):
    def test_model(self):
        self.refuse("no model file", "run", "-m", "/nowhere.gguf", "-p", "x")
        self.refuse("FASA_MODEL", "run", "-p", "x", env={"FASA_MODEL": "/nowhere.gguf"})
        self.refuse("cannot load the model", "run", "-m", TEXT, "--policy", "full", "-p", "x")

    def test_profile(self):
        self.refuse("fasa calibrate", "run", "-m", MODEL, "--profile", WORK + "/none.json", "-p", "x")
        link = os.path.join(WORK, "lonely.gguf")
        if not os.path.islink(link):
            os.symlink(MODEL, link)
        self.refuse("fasa calibrate", "bench", "-m", link)
        with open(PROFILE) as file:
            profile = json.load(file)
        foreign = os.path.join(WORK, "foreign.fasa.json")
        profile["architecture"] = "another"
        with open(foreign, "w") as file:
            json.dump(profile, file)
        self.refuse("another model", "run", "-m", MODEL, "--profile", foreign, "-p", "x")
        with open(foreign, "w") as file:
            file.write('{"truncated": ')
        self.refuse(foreign, "run", "-m", MODEL, "--profile", foreign, "-p", "x")

    def test_settings(self):
        self.refuse("nonsense", "run", *COMMON, "--policy", "nonsense", "-p", "x")
        self.refuse("budget", "run", *COMMON, "--budget", 10, "-p", "x")
        self.refuse("--n-tip", "run", *COMMON, "--n-tip", "many", "-p", "x")
        self.refuse("wrong", "run", *COMMON, "--criterion", "wrong", "-p", "x")

    def test_texts(self):
        self.refuse("no text", "eval", "kl", *COMMON, "--text", "/nowhere.txt")
        self.refuse("longer text", "eval", "kl", *COMMON, "--text", TEXT, "--context", 8000)
        self.refuse("trained context", "eval", "kl", *COMMON, "--text", TEXT, "--context", 900000)
        self.refuse("100", "run", *COMMON, "--file", TEXT, "-p", "x", "-c", "100")


class Run(Base):
    def test_full_and_fasa_agree_within_the_budget(self):
        question = ["-p", "Name three colours.", "-n", 24]
        full = self.succeed("run", *COMMON, "--policy", "full", *question)
        sparse = self.succeed("run", *COMMON, "--policy", "fasa", *question)
        self.assertGreater(len(full.stdout.strip()), 10)
        self.assertEqual(full.stdout, sparse.stdout)

    def test_chat_remembers(self):
        result = self.succeed("run", *COMMON, "--chat", "-n", 12, stdin="Hello\nAgain\n/clear\n/exit\n")
        self.assertEqual(result.stderr.count("tokens/s"), 2, result.stderr)

    def test_compare(self):
        with open(TEXT) as file:
            short = file.read()[:1500]
        path = os.path.join(WORK, "short.txt")
        with open(path, "w") as file:
            file.write(short)
        out = self.succeed("run", *COMMON, "--file", path, "-p", "What is chapter 3 about?", "-n", 16,
                           "--budget", 128, "--compare").stdout
        for part in ("tokens/s", "time to first token", "KV bytes read a token", "index",
                     "peak memory", "the answers"):
            self.assertIn(part, out)


class Bench(Base):
    def test_rows(self):
        out = os.path.join(WORK, "bench.jsonl")
        if os.path.exists(out):
            os.remove(out)
        rows = self.rows("bench", *COMMON, "--depth", "0,400", "--policy", "full,fasa", "--budget", 48,
                         "--rounds", 2, "--tokens", 8, "--json", "--out", out)
        self.assertEqual([(r["depth"], r["policy"]) for r in rows],
                         [(0, "full"), (0, "fasa"), (400, "full"), (400, "fasa")])
        for row in rows:
            self.assertEqual(row["threads"], 2)
            self.assertLessEqual(row["decode_tps_p10"], row["decode_tps"])
            self.assertLessEqual(row["decode_tps"], row["decode_tps_p90"])
            for key in ("prefill_tps", "kv_bytes_read_per_token", "peak_rss_bytes"):
                self.assertGreater(row[key], 0, key)
        full, sparse = rows[2:]
        self.assertLess(sparse["kv_bytes_read_per_token"], full["kv_bytes_read_per_token"] / 2)
        self.assertGreater(sparse["index_bytes"], 0)
        with open(out) as file:
            self.assertEqual([json.loads(line) for line in file], rows)


class Kl(Base):
    def test_rows(self):
        rows = self.rows("eval", "kl", *COMMON, "--text", TEXT, "--context", 256, "--tokens", 64,
                         "--policy", "full,fasa,oracle", "--budget", "512,64", "--json")
        self.assertEqual([(r["policy"], r["budget"]) for r in rows if r["policy"] != "full"],
                         [("fasa", 512), ("fasa", 64), ("oracle", 512), ("oracle", 64)])
        for row in rows:
            self.assertEqual((row["tokens"], row["context"], row["text"]), (64, 256, TEXT))
            self.assertGreaterEqual(row["kl_se"], 0)
            self.assertGreater(row["ppl"], 1)
            self.assertEqual(row["ppl_full"], rows[0]["ppl_full"])
            if row["policy"] == "full":  # the same computation as the reference
                self.assertLess(row["kl_mean"], 1e-9)
            elif row["budget"] == 512:  # all tokens are kept
                self.assertLess(row["kl_mean"], 3e-3)
                self.assertGreater(row["top1_agreement"], 0.9)
            else:
                self.assertGreater(row["kl_mean"], 1e-3)

    def test_passkey(self):
        rows = self.rows("eval", "passkey", *COMMON, "--context", 300, "--trials", 2, "--policy",
                         "full,fasa", "--budget", 512, "--json")
        self.assertEqual(rows[0]["found"], rows[1]["found"])


class Eval(Base):
    """Each evaluation on prompts of a few hundred tokens, and what they share: results that stay, one report."""

    def setUp(self):
        self.out = os.path.join(WORK, "eval-%s.jsonl" % self._testMethodName)
        if os.path.exists(self.out):
            os.remove(self.out)

    def evaluate(self, name, *arguments, policies="full,fasa", budget=512):
        return self.rows("eval", name, *COMMON, "--policy", policies, "--budget", budget, *arguments,
                         "--out", self.out, "--json")

    def test_a_rerun_makes_only_what_is_missing(self):
        arguments = ["--text", TEXT, "--context", 200, "--tokens", 16]
        first = self.evaluate("kl", *arguments, budget=64)
        with open(self.out, "a") as file:
            file.write('{"key": "cut')  # what a stopped run leaves
        again = self.evaluate("kl", *arguments, policies="fasa,oracle", budget=64)
        self.assertEqual(again[0], first[1])  # its times too: it was not made again
        self.assertEqual([row["policy"] for row in again], ["fasa", "oracle"])
        with open(self.out) as file:
            self.assertEqual(len(file.readlines()), 4)
        other = self.evaluate("kl", *arguments, "--n-tip", "4", policies="fasa", budget=64)
        self.assertNotEqual(other[0]["key"], first[1]["key"])

    def test_answers(self):
        grid = self.evaluate("needle", "--kind", "passkey", "--length", "150,200", "--depth", "0,100", "--trials", 1)
        self.assertEqual([(r["policy"], r["context"], r["depth"]) for r in grid[:3]],
                         [("full", 150, 0), ("fasa", 150, 0), ("full", 150, 100)])
        self.assertEqual(len(grid), 8)
        ruler = self.evaluate("ruler", "--length", 300, "--trials", 1, policies="full", budget=2000)
        self.assertEqual([r["task"] for r in ruler],
                         ["multikey", "multivalue", "multiquery", "tracking", "common", "frequent"])
        recall = self.evaluate("recall", "-c", 300, "--trials", 1, budget=2000)
        # Within the budget all keep everything: full attention's answer to rounding.
        for rows in (grid[0:2], grid[2:4], recall):
            self.assertEqual(rows[0]["score_mean"], rows[1]["score_mean"])
            self.assertIn(rows[0]["score_mean"], (0, 1))
        self.report()

    def test_contextual_agreement(self):
        arguments = ["--text", TEXT, "-c", 400, "--queries", 4]
        oracle, fasa, random = self.evaluate("ca", *arguments, "--sinks", 0, "--recent", 0,
                                             policies="oracle,fasa,random", budget=64)
        self.assertEqual(oracle["agreement"], 1)  # by definition
        self.assertGreater(fasa["agreement"], 2 * random["agreement"])
        self.assertAlmostEqual(random["agreement"], 64 / 402, delta=0.05)
        for row in (oracle, fasa, random):
            self.assertGreater(row["mass"], 0)
            self.assertLessEqual(row["mass"], 1.0001)
            self.assertEqual(row["layers"], list(range(2, 30)))
            self.assertEqual([len(heads) for heads in row["agreement_by_head"]], [9] * 28)
        self.assertGreaterEqual(oracle["mass"], fasa["mass"])
        self.assertGreater(fasa["mass"], random["mass"])
        single, = self.rows("eval", "ca", *COMMON, "--single", "ca64", "--out", self.out, "--json")
        self.assertEqual(single["heads"], 270)
        self.assertGreater(single["best"], 2 * single["median"])
        self.refuse("nothing is left out", "eval", "ca", *COMMON, *arguments, "--budget", 4000)
        self.refuse("keeps every token", "eval", "ca", *COMMON, *arguments, "--policy", "full")
        self.refuse("ca7", "eval", "ca", *COMMON, "--single", "ca7")

    def test_longform(self):
        row = self.evaluate("longform", "--text", TEXT, "-c", 100, "-n", 40, policies="full,fasa", budget=64)
        self.assertEqual(row[0]["kl_mean"], 0)
        self.assertAlmostEqual(row[0]["own_text_ppl"], row[0]["full_text_ppl"], delta=0.05 * row[0]["full_text_ppl"])
        self.assertGreater(row[1]["kl_last_quarter"], 0)
        self.assertEqual(row[1]["tokens"], 40)

    def test_tasks(self):
        path = os.path.join(WORK, "tasks.jsonl")
        with open(path, "w") as file:
            for colour in ("red", "blue"):
                file.write(json.dumps({"context": "The box is %s. " % colour * 20, "input": "The colour of the box is",
                                       "answers": [colour], "dataset": "hotpotqa", "all_classes": None}) + "\n")
        prompts = os.path.join(WORK, "prompts.json")
        with open(prompts, "w") as file:
            json.dump({"hotpotqa": "{context}{input}"}, file)
        rows = self.evaluate("tasks", "--file", path, "--prompts", prompts, "-c", 300)
        self.assertEqual([r["policy"] for r in rows], ["full", "fasa"])
        self.assertEqual(rows[0]["metric"], "F1")
        self.assertEqual(rows[0]["trials"], 2)
        self.assertGreater(rows[0]["score_mean"], 0)
        self.assertEqual(rows[0]["score_mean"], rows[1]["score_mean"])
        with open(path, "a") as file:
            file.write("{broken\n")
        self.refuse("line 3", "eval", "tasks", *COMMON, "--file", path)

    def report(self):
        html = os.path.join(WORK, "report.html")
        out = self.succeed("eval", "report", self.out, "-o", html).stdout
        self.assertIn("RULER-style tasks", out)
        with open(html) as file:
            page = file.read()
        self.assertIn("<svg", page)
        self.assertIn("Multi-turn recall", page)
        self.assertNotRegex(page.replace("http://www.w3.org/2000/svg", ""), "https?://")  # self-contained

    def test_errors(self):
        self.refuse("no results", "eval", "report", TEXT)
        self.refuse("no task", "eval", "ruler", *COMMON, "--task", "nonsense")
        self.refuse("trained context", "eval", "needle", *COMMON, "--length", 100000)
        self.refuse("sentences", "eval", "recall", *COMMON, "--text", PROFILE)
        self.refuse("--cache", "eval", "kl", *COMMON, "--text", TEXT, "--cache", TEXT)


class Serve(Base):
    def test_two_requests_at_once(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        base = "http://127.0.0.1:%d" % port
        with open(TEXT) as file:
            document = file.read()[:2500]
        server = subprocess.Popen([FASA, "serve", *COMMON, "--budget", "64", "--port", str(port), "--",
                                   "-c", "4096", "-np", "2"],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            self.wait_for(base, server)
            answers = [None, None]

            def ask(i):
                body = {"messages": [{"role": "user", "content": document + "\nSay something %d." % i}],
                        "max_tokens": 16, "temperature": 0}
                request = urllib.request.Request(base + "/v1/chat/completions",
                                                 json.dumps(body).encode(),
                                                 {"Content-Type": "application/json"})
                with urllib.request.urlopen(request, timeout=90) as response:
                    answers[i] = json.load(response)

            threads = [threading.Thread(target=ask, args=(i,)) for i in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for answer in answers:
                self.assertGreater(len(answer["choices"][0]["message"]["content"]), 0)
                self.assertGreater(answer["usage"]["completion_tokens"], 1)
        finally:
            server.terminate()
            server.wait(timeout=30)

    def wait_for(self, base, server):
        for _ in range(300):
            self.assertIsNone(server.poll(), "llama-server ended")
            try:
                with urllib.request.urlopen(base + "/health", timeout=2) as response:
                    if response.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        self.fail("llama-server does not become ready")


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], CASE])
