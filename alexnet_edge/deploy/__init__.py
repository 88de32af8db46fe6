"""From a laptop to a proved engine on a device, with a way back: `alexnet-edge deploy`."""
