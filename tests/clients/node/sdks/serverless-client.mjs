import { StatsigServerlessClient } from '@statsig/serverless-client';
import { USER } from '../odd-events.mjs';

export async function drive({ events, relay, specs }) {
  const client = new StatsigServerlessClient('client-driver', {
    networkConfig: { api: `${specs}/v1`, logEventUrl: `${relay}/rgstr`, sdkExceptionUrl: `${specs}/v1/sdk_exception` },
  });
  await client.initializeViaURL(`${specs}/v1/download_config_specs`);
  client.checkGate('a_gate', USER);
  client.getDynamicConfig('a_config', USER);
  client.getLayer('a_layer', USER).get('size');
  for (const { name, value, metadata, user } of events) {
    client.logEvent({ eventName: name, value, metadata }, user === undefined ? USER : user);
  }
  await client.flush();
  await client.shutdown();
}
