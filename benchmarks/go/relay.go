// What a Go author writes: a goroutine a direction, io.Copy, which splices where it can.
package main

import (
	"io"
	"log"
	"net"
	"os"
)

func pump(to, from *net.TCPConn, done chan<- struct{}) {
	io.Copy(to, from)
	to.CloseWrite()
	done <- struct{}{}
}

func relay(client *net.TCPConn, origin string) {
	defer client.Close()
	conn, err := net.Dial("tcp", origin)
	if err != nil {
		return
	}
	upstream := conn.(*net.TCPConn)
	defer upstream.Close()
	done := make(chan struct{}, 2)
	go pump(upstream, client, done)
	go pump(client, upstream, done)
	<-done
	<-done
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go relay(conn.(*net.TCPConn), "127.0.0.1:"+os.Args[2])
	}
}
