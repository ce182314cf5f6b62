// What a client reads and prints; see callers.py.
import { readFileSync } from 'node:fs';

export const PROMPT = JSON.stringify({ prompt: 'x'.repeat(2000) });
export const HEADERS = { 'content-type': 'application/json' };

export const plan = () => JSON.parse(readFileSync(0, 'utf8'));

export class Told {
  tookUs = [];

  serverUs = [];

  heard(n, tookMs, serverUs) {
    this.tookUs[n] = Math.trunc(tookMs * 1e3);
    this.serverUs[n] = Number(serverUs);
  }

  async clocked(work) {
    const began = performance.now();
    const cpu = process.cpuUsage();
    await work();
    const used = process.cpuUsage(cpu);
    this.wallS = (performance.now() - began) / 1e3;
    this.cpuS = (used.user + used.system) / 1e6;
  }

  tell() {
    console.log(JSON.stringify({
      wall_s: this.wallS, cpu_s: this.cpuS, took_us: this.tookUs, server_us: this.serverUs,
    }));
  }
}
